//! The fields of one header block, encoded with HPACK (RFC 7541).

use bytes::{BufMut, BytesMut};
use http::uri::Authority;
use loona_hpack::Decoder;
use loona_hpack::decoder::DecoderError;

/// Limit of the decoded fields of a block, counted as in `SETTINGS_MAX_HEADER_LIST_SIZE`. The server has a
/// lower limit and answers it with a status. This one bounds the memory that a small block can expand to.
const MAX_DECODED: usize = 64 << 10;
/// The size that each field counts in addition to its name and value (RFC 9113, section 6.5.2).
const OVERHEAD: usize = 32;
/// The value that replaces an invalid authority. A server on a unix socket serves one host.
const AUTHORITY: &[u8] = b"localhost";

/// A block that cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub(super) enum FieldsError {
    /// It is not HPACK.
    #[error("invalid HPACK: {0}")]
    Invalid(#[from] DecoderError),
    /// Its fields are too large.
    #[error("the header fields are larger than {MAX_DECODED} bytes")]
    TooLarge,
}

/// Decodes a block and encodes its fields again as literals that need no table, with a valid `:authority`.
///
/// The client's encoder and `decoder` share a table of earlier fields. The output adds nothing to the
/// server's table, so replaced values cannot be referenced later.
pub(super) fn rewrite(decoder: &mut Decoder<'static>, block: &[u8]) -> Result<BytesMut, FieldsError> {
    let mut encoded = BytesMut::with_capacity(block.len() * 2);
    let mut size = 0;
    decoder.decode_with_cb(block, |name, value| {
        size += name.len() + value.len() + OVERHEAD;
        if size <= MAX_DECODED {
            literal(&mut encoded, &name, if is_refused(&name, &value) { AUTHORITY } else { &value });
        }
    })?;
    if size > MAX_DECODED { Err(FieldsError::TooLarge) } else { Ok(encoded) }
}

/// Returns whether the server would reset a request with this field.
fn is_refused(name: &[u8], value: &[u8]) -> bool {
    name == b":authority" && Authority::try_from(value).is_err()
}

/// Writes a "Literal Header Field without Indexing -- New Name" (RFC 7541, section 6.2.2).
fn literal(block: &mut BytesMut, name: &[u8], value: &[u8]) {
    block.put_u8(0);
    string(block, name);
    string(block, value);
}

/// Writes a string without Huffman encoding (RFC 7541, section 5.2).
fn string(block: &mut BytesMut, text: &[u8]) {
    const PREFIX: usize = 127;
    match u8::try_from(text.len()) {
        Ok(length) if text.len() < PREFIX => block.put_u8(length),
        _ => {
            block.put_u8(127);
            let mut rest = text.len() - PREFIX;
            while rest > 127 {
                block.put_u8(u8::try_from(rest % 128).unwrap_or_default() | 128);
                rest /= 128;
            }
            block.put_u8(u8::try_from(rest).unwrap_or_default());
        }
    }
    block.put_slice(text);
}
