//! Sizes of a client's terminal: JSON values one after the other, `{"Width":80,"Height":24}`.

use bytes::{Buf, BytesMut};
use serde::Deserialize;

use crate::exec::session::TerminalSize;

/// The most that is kept of a value that is not whole.
const MAX_TEXT: usize = 1 << 10;

/// What was sent is not a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotASize;

#[derive(Deserialize)]
struct Size {
    #[serde(alias = "Width")]
    width: u16,
    #[serde(alias = "Height")]
    height: u16,
}

/// Takes the sizes that are whole off a text.
///
/// # Errors
/// The text is none of sizes.
pub fn sizes(text: &mut BytesMut) -> Result<Vec<TerminalSize>, NotASize> {
    let mut found = Vec::new();
    let mut values = serde_json::Deserializer::from_slice(text).into_iter::<Size>();
    let mut taken = 0;
    loop {
        match values.next() {
            Some(Ok(Size { width, height })) => {
                found.push(TerminalSize { width, height });
                taken = values.byte_offset();
            }
            Some(Err(error)) if error.is_eof() => break,
            Some(Err(_)) => return Err(NotASize),
            None => {
                taken = text.len();
                break;
            }
        }
    }
    text.advance(taken);
    if text.len() > MAX_TEXT { Err(NotASize) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &mut BytesMut) -> Result<Vec<(u16, u16)>, NotASize> {
        Ok(sizes(text)?.into_iter().map(|size| (size.width, size.height)).collect())
    }

    #[test]
    fn values_come_in_any_pieces() {
        let mut text = BytesMut::from(&br#"{"Width":80,"Height":24}{"Wid"#[..]);
        assert_eq!(of(&mut text), Ok(vec![(80, 24)]));
        text.extend_from_slice(b"th\":1,\"Height\":2}\n");
        assert_eq!(of(&mut text), Ok(vec![(1, 2)]));
        assert_eq!((of(&mut text), text.len()), (Ok(vec![]), 0));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for wrong in ["[]", "{\"Width\":-1,\"Height\":2}", "{\"Width\":70000,\"Height\":2}", "x"] {
            assert_eq!(of(&mut BytesMut::from(wrong)), Err(NotASize), "{wrong}");
        }
        let endless = format!("{{\"Width\":80,{}", " ".repeat(MAX_TEXT));
        assert_eq!(of(&mut BytesMut::from(endless.as_str())), Err(NotASize));
    }
}
