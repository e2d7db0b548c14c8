//! Header blocks: pairs of names and values. One compression state, with a dictionary, covers all blocks of a
//! session (draft 3.1, section 2.6.10).
//!
//! Received blocks are decompressed up to [`MAX_BLOCK`], whatever their compressed size. Sent blocks use the
//! zlib format but are stored uncompressed: they are tiny, a compressor needs 256 KiB per session, and
//! uncompressed lengths leak nothing.

use flate2::{Decompress, FlushDecompress, Status};

use super::dictionary::{DICTIONARY, ID};

/// Limit of a decompressed block.
pub const MAX_BLOCK: usize = 64 << 10;

/// Limit of the headers in a block.
const MAX_HEADERS: u32 = 64;

/// Why a block is invalid. The session must end: its compression state is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// It is not valid zlib data, or has another dictionary.
    #[error("invalid headers: failed to decompress")]
    Compression,
    /// It decompresses to more than [`MAX_BLOCK`].
    #[error("invalid headers: more than {MAX_BLOCK} bytes")]
    TooLarge,
    /// It has too many headers.
    #[error("invalid headers: {0} in one block")]
    TooMany(u32),
    /// Inconsistent lengths, or an invalid name or value.
    #[error("invalid headers: malformed block")]
    Malformed,
}

/// The headers of a stream. Names are in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamHeaders(Vec<(String, String)>);

impl StreamHeaders {
    /// Creates headers from pairs; names are converted to lower case.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect())
    }

    /// Returns the value of a header; the name is case-insensitive. Of several values, returns the first.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let header = self.0.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        header.map(|(_, value)| value.split('\0').next().unwrap_or_default())
    }

    /// Parses a decompressed block.
    ///
    /// # Errors
    /// The block is malformed or has too many headers.
    pub fn parse(block: &[u8]) -> Result<Self, HeaderError> {
        let mut rest = block;
        let count = number(&mut rest)?;
        if count > MAX_HEADERS {
            return Err(HeaderError::TooMany(count));
        }
        let mut headers = Vec::new();
        for _ in 0..count {
            let (name, value) = (text(&mut rest)?, text(&mut rest)?);
            if name.is_empty() {
                return Err(HeaderError::Malformed);
            }
            headers.push((name.to_ascii_lowercase(), value));
        }
        if rest.is_empty() { Ok(Self(headers)) } else { Err(HeaderError::Malformed) }
    }

    /// Encodes an uncompressed block.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut block = Vec::new();
        let length = |block: &mut Vec<u8>, length: usize| {
            block.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
        };
        length(&mut block, self.0.len());
        for text in self.0.iter().flat_map(|(name, value)| [name, value]) {
            length(&mut block, text.len());
            block.extend_from_slice(text.as_bytes());
        }
        block
    }
}

fn number(rest: &mut &[u8]) -> Result<u32, HeaderError> {
    let (number, after) = rest.split_first_chunk().ok_or(HeaderError::Malformed)?;
    *rest = after;
    Ok(u32::from_be_bytes(*number))
}

fn text(rest: &mut &[u8]) -> Result<String, HeaderError> {
    let length = usize::try_from(number(rest)?).map_err(|_| HeaderError::Malformed)?;
    let (text, after) = rest.split_at_checked(length).ok_or(HeaderError::Malformed)?;
    *rest = after;
    String::from_utf8(text.to_vec()).map_err(|_| HeaderError::Malformed)
}

/// Decompresses the blocks of one direction of a session.
#[derive(Debug)]
pub struct Decompressor {
    zlib: Decompress,
    block: Vec<u8>,
}

impl Default for Decompressor {
    fn default() -> Self {
        Self { zlib: Decompress::new(true), block: Vec::new() }
    }
}

impl Decompressor {
    /// Decompresses and parses the next block.
    ///
    /// # Errors
    /// See [`HeaderError`]; after an error no further block can be read.
    pub fn block(&mut self, compressed: &[u8]) -> Result<StreamHeaders, HeaderError> {
        self.block.clear();
        let mut rest = compressed;
        let mut piece = [0_u8; 4096];
        loop {
            let before = (self.zlib.total_in(), self.zlib.total_out());
            let status = self.zlib.decompress(rest, &mut piece, FlushDecompress::Sync);
            let taken = usize::try_from(self.zlib.total_in() - before.0).unwrap_or(usize::MAX);
            let given = usize::try_from(self.zlib.total_out() - before.1).unwrap_or(usize::MAX);
            rest = rest.get(taken..).ok_or(HeaderError::Compression)?;
            let given = piece.get(..given).ok_or(HeaderError::Compression)?;
            if self.block.len() + given.len() > MAX_BLOCK {
                return Err(HeaderError::TooLarge);
            }
            self.block.extend_from_slice(given);
            match status {
                Ok(Status::Ok | Status::BufError) if given.is_empty() && taken == 0 => break,
                Ok(Status::Ok | Status::BufError) => {}
                Ok(Status::StreamEnd) => return Err(HeaderError::Compression),
                Err(error) if error.needs_dictionary() == Some(ID) => {
                    self.zlib.set_dictionary(&DICTIONARY).map_err(|_| HeaderError::Compression)?;
                }
                Err(_) => return Err(HeaderError::Compression),
            }
        }
        if !rest.is_empty() {
            return Err(HeaderError::Compression);
        }
        StreamHeaders::parse(&self.block)
    }
}

/// Encodes the blocks of one direction of a session.
#[derive(Debug, Default)]
pub struct HeaderWriter {
    begun: bool,
}

impl HeaderWriter {
    /// Encodes the next block, in the zlib format.
    pub fn block(&mut self, headers: &StreamHeaders) -> Vec<u8> {
        let mut out = Vec::new();
        if !self.begun {
            // The header of a zlib stream with a dictionary (RFC 1950): method and window, level and check
            // bits, dictionary id.
            out.extend_from_slice(&[0x78, 0xbb]);
            out.extend_from_slice(&ID.to_be_bytes());
            self.begun = true;
        }
        let block = headers.encode();
        // Stored blocks of DEFLATE (RFC 1951, section 3.2.4). The empty one at the end is the same as after a
        // flush; Go's reader waits for it before it returns data.
        for piece in block.chunks(usize::from(u16::MAX)).chain([&[][..]]) {
            let length = u16::try_from(piece.len()).unwrap_or_default();
            out.push(0);
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(&(!length).to_le_bytes());
            out.extend_from_slice(piece);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};
    use proptest::prelude::*;

    use super::*;

    /// A peer that compresses.
    struct Compressor(Compress);

    impl Compressor {
        fn new() -> Self {
            let mut zlib = Compress::new(Compression::best(), true);
            assert_eq!(zlib.set_dictionary(&DICTIONARY).unwrap(), ID);
            Self(zlib)
        }

        fn block(&mut self, block: &[u8]) -> Vec<u8> {
            let mut out = Vec::with_capacity(block.len() + 1000);
            self.0.compress_vec(block, &mut out, FlushCompress::Sync).unwrap();
            out
        }
    }

    fn headers() -> impl Strategy<Value = StreamHeaders> {
        let pairs = prop::collection::vec(("[a-z][a-z-]{0,20}", ".{0,80}"), 0..10);
        pairs.prop_map(StreamHeaders)
    }

    proptest! {
        #[test]
        fn blocks_of_a_session_are_read_as_they_were_written(blocks in prop::collection::vec(headers(), 1..6)) {
            let (mut stored, mut compressed) = (Decompressor::default(), Decompressor::default());
            let (mut writer, mut compressor) = (HeaderWriter::default(), Compressor::new());
            for block in blocks {
                prop_assert_eq!(&stored.block(&writer.block(&block)).unwrap(), &block);
                prop_assert_eq!(&compressed.block(&compressor.block(&block.encode())).unwrap(), &block);
            }
        }

        #[test]
        fn nothing_breaks_the_parsers(bytes: Vec<u8>) {
            drop(StreamHeaders::parse(&bytes));
            drop(Decompressor::default().block(&bytes));
        }
    }

    #[test]
    fn names_are_found_in_any_case() {
        let headers = StreamHeaders::from_pairs([("streamType", "data\0other"), ("port", "80")]);
        assert_eq!(headers.get("StreamType"), Some("data"));
        assert_eq!(headers.get("requestID"), None);
    }

    #[test]
    fn a_compression_bomb_is_stopped_at_the_limit() {
        let mut compressor = Compressor::new();
        let block = compressor.block(&vec![0; 1 << 20]);
        assert!(block.len() < 64 << 10, "{}", block.len());
        assert_eq!(Decompressor::default().block(&block), Err(HeaderError::TooLarge));
    }

    #[test]
    fn wrong_lengths_are_refused() {
        for (block, expected) in [
            (&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, b'a'][..], HeaderError::Malformed),
            (&[0xff, 0xff, 0xff, 0xff], HeaderError::TooMany(u32::MAX)),
            (&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0], HeaderError::Malformed),
            (&[0, 0, 0, 0, 0], HeaderError::Malformed),
        ] {
            assert_eq!(StreamHeaders::parse(block), Err(expected), "{block:?}");
        }
    }

    #[test]
    fn another_dictionary_is_refused() {
        let mut zlib = Compress::new(Compression::best(), true);
        zlib.set_dictionary(b"another").unwrap();
        let mut out = Vec::with_capacity(100);
        zlib.compress_vec(&[0; 4], &mut out, FlushCompress::Sync).unwrap();
        assert_eq!(Decompressor::default().block(&out), Err(HeaderError::Compression));
    }
}
