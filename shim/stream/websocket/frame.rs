//! WebSocket frames (RFC 6455, section 5): decodes and encodes frame headers and checks the order of frames,
//! without I/O.

/// The longest frame header: two bytes, eight of an extended length, four of a mask.
pub const MAX_HEAD: usize = 14;

/// The longest payload of a control frame (section 5.5).
pub const MAX_CONTROL: usize = 125;

/// The type of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// Continues a message.
    Continuation,
    /// A text message.
    Text,
    /// A binary message.
    Binary,
    /// Closes the connection.
    Close,
    /// Requests a pong.
    Ping,
    /// The answer to a ping.
    Pong,
}

impl Opcode {
    fn from_bits(bits: u8) -> Result<Self, FrameError> {
        Ok(match bits {
            0 => Self::Continuation,
            1 => Self::Text,
            2 => Self::Binary,
            8 => Self::Close,
            9 => Self::Ping,
            10 => Self::Pong,
            other => return Err(FrameError::Opcode(other)),
        })
    }

    fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0,
            Self::Text => 1,
            Self::Binary => 2,
            Self::Close => 8,
            Self::Ping => 9,
            Self::Pong => 10,
        }
    }

    fn is_control(self) -> bool {
        self.bits() >= 8
    }
}

/// A violation of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The frame type does not exist.
    #[error("invalid frame: unknown type {0}")]
    Opcode(u8),
    /// A bit of an extension is set that was not negotiated.
    #[error("invalid frame: an extension bit is set")]
    Extension,
    /// The frame has no mask, which clients must use (section 5.1).
    #[error("invalid frame: no mask")]
    Unmasked,
    /// The length is out of range or not in its shortest form.
    #[error("invalid frame: wrong length")]
    Length,
    /// A control frame is fragmented or too long.
    #[error("invalid control frame: fragmented or longer than {MAX_CONTROL} bytes")]
    Control,
    /// A continuation without a message, or a new message within another.
    #[error("invalid frame: out of order")]
    Order,
}

/// The header of a frame from a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WebSocketFrameHeader {
    /// The frame is the last of its message.
    pub fin: bool,
    /// The type of the frame.
    pub opcode: Opcode,
    /// The mask of the payload.
    pub mask: [u8; 4],
    /// Length of the payload.
    pub length: u64,
}

impl WebSocketFrameHeader {
    /// Parses a header. Returns it and its length; none if it is incomplete.
    ///
    /// # Errors
    /// The header violates the protocol.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, FrameError> {
        let [first, second, rest @ ..] = bytes else { return Ok(None) };
        if first & 0x70 != 0 {
            return Err(FrameError::Extension);
        }
        let opcode = Opcode::from_bits(first & 0x0f)?;
        let fin = first & 0x80 != 0;
        if second & 0x80 == 0 {
            return Err(FrameError::Unmasked);
        }
        let short = second & 0x7f;
        if opcode.is_control() && (!fin || usize::from(short) > MAX_CONTROL) {
            return Err(FrameError::Control);
        }
        let (length, rest, extended) = match short {
            126 => match rest.split_first_chunk::<2>() {
                Some((length, rest)) => (u64::from(u16::from_be_bytes(*length)), rest, 2),
                None => return Ok(None),
            },
            127 => match rest.split_first_chunk::<8>() {
                Some((length, rest)) => (u64::from_be_bytes(*length), rest, 8),
                None => return Ok(None),
            },
            short => (u64::from(short), rest, 0),
        };
        let shortest = match extended {
            2 => length >= 126,
            8 => length > u64::from(u16::MAX) && length < 1 << 63,
            _ => true,
        };
        if !shortest {
            return Err(FrameError::Length);
        }
        let Some((mask, _)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        Ok(Some((Self { fin, opcode, mask: *mask, length }, 2 + extended + 4)))
    }
}

/// Appends the header of an unfragmented message or control frame. Servers do not mask.
pub fn encode_head(opcode: Opcode, length: usize, out: &mut Vec<u8>) {
    out.push(0x80 | opcode.bits());
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ ..=125), _) => out.push(short),
        (_, Ok(length)) => {
            out.push(126);
            out.extend_from_slice(&length.to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&u64::try_from(length).unwrap_or_default().to_be_bytes());
        }
    }
}

/// Removes the mask from a piece of a payload, and rotates the mask for the next piece.
pub fn unmask(mask: &mut [u8; 4], piece: &mut [u8]) {
    let [a, b, c, d] = *mask;
    // Four masks per step: all input of WebSocket clients passes here.
    let wide = u128::from_ne_bytes([a, b, c, d, a, b, c, d, a, b, c, d, a, b, c, d]);
    let (chunks, rest) = piece.as_chunks_mut::<16>();
    for chunk in chunks {
        *chunk = (u128::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
    mask.rotate_left(rest.len() % 4);
}

/// The role of a frame in the sequence of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A part of a message.
    Message {
        /// The first frame of the message.
        begins: bool,
        /// The last frame of the message.
        ends: bool,
    },
    /// The end of the connection.
    Close,
    /// A ping, which must be answered.
    Ping,
    /// A pong; the server sends no pings, so it is ignored.
    Pong,
}

/// Checks the order of frames: messages are not interleaved, control frames may come between (section 5.4).
#[derive(Clone, Copy, Debug, Default)]
pub struct Order {
    within: bool,
}

impl Order {
    /// Classifies the next frame.
    ///
    /// # Errors
    /// The frame may not follow.
    pub fn next(&mut self, head: &WebSocketFrameHeader) -> Result<Part, FrameError> {
        let begins = match head.opcode {
            Opcode::Close => return Ok(Part::Close),
            Opcode::Ping => return Ok(Part::Ping),
            Opcode::Pong => return Ok(Part::Pong),
            Opcode::Continuation if self.within => false,
            Opcode::Text | Opcode::Binary if !self.within => true,
            _ => return Err(FrameError::Order),
        };
        self.within = !head.fin;
        Ok(Part::Message { begins, ends: head.fin })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Encodes a frame header as a client does.
    fn from_client(opcode: Opcode, fin: bool, mask: [u8; 4], length: usize) -> Vec<u8> {
        let mut head = Vec::new();
        encode_head(opcode, length, &mut head);
        head[0] = if fin { head[0] } else { head[0] & 0x7f };
        head[1] |= 0x80;
        head.extend_from_slice(&mask);
        head
    }

    proptest! {
        #[test]
        fn a_head_is_read_as_it_was_written(fin: bool, mask: [u8; 4], length in 0..200_000_usize) {
            let bytes = from_client(Opcode::Binary, fin, mask, length);
            let head = WebSocketFrameHeader { fin, opcode: Opcode::Binary, mask, length: u64::try_from(length).unwrap() };
            prop_assert_eq!(WebSocketFrameHeader::parse(&bytes), Ok(Some((head, bytes.len()))));
            for cut in 0..bytes.len() {
                prop_assert_eq!(WebSocketFrameHeader::parse(&bytes[..cut]), Ok(None));
            }
        }

        #[test]
        fn nothing_breaks_the_parser(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
            if let Ok(Some((head, length))) = WebSocketFrameHeader::parse(&bytes) {
                prop_assert!(length <= MAX_HEAD && length <= bytes.len());
                let _next = Order::default().next(&head);
            }
        }

        #[test]
        fn a_mask_goes_on_over_pieces(mask: [u8; 4], bytes: Vec<u8>, cut: prop::sample::Index) {
            let cut = if bytes.is_empty() { 0 } else { cut.index(bytes.len()) };
            let mut pieces = bytes.clone();
            let (first, second) = pieces.split_at_mut(cut);
            let mut turned = mask;
            unmask(&mut turned, first);
            unmask(&mut turned, second);
            let whole: Vec<u8> = bytes.iter().enumerate().map(|(i, byte)| byte ^ mask[i % 4]).collect();
            prop_assert_eq!(pieces, whole);
        }
    }

    #[test]
    fn invalid_headers_are_refused() {
        for (bytes, expected) in [
            (&[0xc2, 0x80][..], FrameError::Extension),
            (&[0x83, 0x80], FrameError::Opcode(3)),
            (&[0x82, 0x00], FrameError::Unmasked),
            (&[0x09, 0x80], FrameError::Control),
            (&[0x89, 0xfe], FrameError::Control),
            (&[0x82, 0xfe, 0, 125], FrameError::Length),
            (&[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0], FrameError::Length),
        ] {
            assert_eq!(WebSocketFrameHeader::parse(bytes), Err(expected), "{bytes:?}");
        }
    }

    #[test]
    fn messages_are_not_interleaved() {
        let head = |opcode, fin| WebSocketFrameHeader { fin, opcode, mask: [0; 4], length: 0 };
        let mut order = Order::default();
        assert_eq!(order.next(&head(Opcode::Continuation, true)), Err(FrameError::Order));
        let begun = Part::Message { begins: true, ends: false };
        assert_eq!(order.next(&head(Opcode::Text, false)), Ok(begun));
        assert_eq!(order.next(&head(Opcode::Ping, true)), Ok(Part::Ping));
        assert_eq!(order.next(&head(Opcode::Binary, true)), Err(FrameError::Order));
        let ended = Part::Message { begins: false, ends: true };
        assert_eq!(order.next(&head(Opcode::Continuation, true)), Ok(ended));
    }
}
