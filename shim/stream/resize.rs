//! Sizes of a client's terminal: a sequence of JSON values, `{"Width":80,"Height":24}`.

use bytes::{Buf, BytesMut};
use serde::Deserialize;

use crate::exec::session::TerminalSize;

/// Limit of an incomplete value.
const MAX_TEXT: usize = 1 << 10;

/// The received text is not a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidSize;

#[derive(Deserialize)]
struct Size {
    #[serde(alias = "Width")]
    width: u16,
    #[serde(alias = "Height")]
    height: u16,
}

/// Takes the complete sizes off the start of a text.
///
/// # Errors
/// The text is not a sequence of sizes.
pub fn sizes(text: &mut BytesMut) -> Result<Vec<TerminalSize>, InvalidSize> {
    let mut complete = Vec::new();
    let mut values = serde_json::Deserializer::from_slice(text).into_iter::<Size>();
    let mut taken = 0;
    loop {
        match values.next() {
            Some(Ok(Size { width, height })) => {
                complete.push(TerminalSize { width, height });
                taken = values.byte_offset();
            }
            Some(Err(error)) if error.is_eof() => break,
            Some(Err(_)) => return Err(InvalidSize),
            None => {
                taken = text.len();
                break;
            }
        }
    }
    text.advance(taken);
    if text.len() > MAX_TEXT { Err(InvalidSize) } else { Ok(complete) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &mut BytesMut) -> Result<Vec<(u16, u16)>, InvalidSize> {
        Ok(sizes(text)?.into_iter().map(|size| (size.width, size.height)).collect())
    }

    #[test]
    fn values_can_arrive_in_pieces() {
        let mut text = BytesMut::from(&br#"{"Width":80,"Height":24}{"Wid"#[..]);
        assert_eq!(of(&mut text), Ok(vec![(80, 24)]));
        text.extend_from_slice(b"th\":1,\"Height\":2}\n");
        assert_eq!(of(&mut text), Ok(vec![(1, 2)]));
        assert_eq!((of(&mut text), text.len()), (Ok(vec![]), 0));
    }

    #[test]
    fn invalid_sizes_are_refused() {
        for wrong in ["[]", "{\"Width\":-1,\"Height\":2}", "{\"Width\":70000,\"Height\":2}", "x"] {
            assert_eq!(of(&mut BytesMut::from(wrong)), Err(InvalidSize), "{wrong}");
        }
        let endless = format!("{{\"Width\":80,{}", " ".repeat(MAX_TEXT));
        assert_eq!(of(&mut BytesMut::from(endless.as_str())), Err(InvalidSize));
    }
}
