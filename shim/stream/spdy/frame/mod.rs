//! SPDY/3.1 frames (draft 3.1, section 2): decodes and encodes them, without I/O.
//!
//! A frame is a header of eight bytes and a payload. The payload of a data frame is handled in pieces and
//! never buffered as a whole. The payload of a control frame is, up to [`MAX_CONTROL`].
//!
//! * this file: numbers and frame headers; [`control`]: control frames

pub mod control;

pub use control::ControlFrame;

/// Length of a frame header in bytes.
pub const HEAD: usize = 8;

/// The largest accepted control frame: a compressed header block and the fields before it.
pub const MAX_CONTROL: usize = 64 << 10;

/// The initial flow control window of a stream and of a session, if no setting changes it (draft 3.1, section
/// 2.6.8).
pub const INITIAL_WINDOW: u32 = 64 << 10;

const VERSION: u16 = 3;
const CONTROL: u8 = 0x80;
const FLAG_FIN: u8 = 1;

/// The number of a stream: 31 bits, odd for streams that the client opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(u32);

impl StreamId {
    /// The session as a whole, for window updates.
    pub const SESSION: Self = Self(0);

    /// Creates a number from the lower 31 bits; the highest bit is reserved.
    #[must_use]
    pub const fn new(raw: u32) -> Self {
        Self(raw & 0x7fff_ffff)
    }

    /// Returns the number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Returns whether the client opens streams with this number.
    #[must_use]
    pub const fn is_clients(self) -> bool {
        self.0 % 2 == 1
    }
}

/// Why a stream is reset (draft 3.1, section 2.6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetStatus(pub u32);

impl ResetStatus {
    /// The peer violated the protocol.
    pub const PROTOCOL_ERROR: Self = Self(1);
    /// The stream does not exist.
    pub const INVALID_STREAM: Self = Self(2);
    /// The stream was refused before any data was handled.
    pub const REFUSED_STREAM: Self = Self(3);
    /// The stream is not needed any longer.
    pub const CANCEL: Self = Self(5);
    /// A window was overrun or is out of range.
    pub const FLOW_CONTROL_ERROR: Self = Self(7);
}

/// Why a session ends (draft 3.1, section 2.6.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoAwayStatus(pub u32);

impl GoAwayStatus {
    /// The session has ended normally.
    pub const OK: Self = Self(0);
    /// The peer violated the protocol.
    pub const PROTOCOL_ERROR: Self = Self(1);
}

/// A violation of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpdyFrameError {
    /// The version of the protocol is not 3.
    #[error("invalid frame: version {0}, not 3")]
    Version(u16),
    /// A control frame is too large.
    #[error("invalid control frame: {0} bytes")]
    TooLarge(usize),
    /// A control frame is too short for its kind, or its lengths are inconsistent.
    #[error("invalid control frame: kind {kind} with {length} bytes")]
    Length {
        /// Its kind.
        kind: u16,
        /// Bytes of its payload.
        length: usize,
    },
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpdyFrameHeader {
    /// A data frame.
    Data {
        /// The stream that the data belongs to.
        stream: StreamId,
        /// The last frame of this direction of the stream.
        fin: bool,
        /// Length of the payload.
        length: usize,
    },
    /// A control frame.
    Control {
        /// Its kind.
        kind: u16,
        /// Its flags, which depend on the kind.
        flags: u8,
        /// Length of the payload.
        length: usize,
    },
}

impl SpdyFrameHeader {
    /// Parses a header.
    ///
    /// # Errors
    /// The version is not 3, or a control frame is too large.
    pub fn parse(bytes: [u8; HEAD]) -> Result<Self, SpdyFrameError> {
        let [a, b, c, d, flags, x, y, z] = bytes;
        let length = usize::try_from(u32::from_be_bytes([0, x, y, z])).unwrap_or(usize::MAX);
        if a & CONTROL == 0 {
            let stream = StreamId::new(u32::from_be_bytes([a, b, c, d]));
            return Ok(Self::Data { stream, fin: flags & FLAG_FIN != 0, length });
        }
        let version = u16::from_be_bytes([a & !CONTROL, b]);
        if version != VERSION {
            return Err(SpdyFrameError::Version(version));
        }
        if length > MAX_CONTROL {
            return Err(SpdyFrameError::TooLarge(length));
        }
        Ok(Self::Control { kind: u16::from_be_bytes([c, d]), flags, length })
    }

    /// Encodes the header of a data frame.
    #[must_use]
    pub fn data(stream: StreamId, fin: bool, length: u32) -> [u8; HEAD] {
        let [a, b, c, d] = stream.0.to_be_bytes();
        let [_, x, y, z] = length.to_be_bytes();
        [a, b, c, d, u8::from(fin), x, y, z]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn controls(block: &[u8]) -> impl Strategy<Value = ControlFrame<'_>> {
        let stream = any::<u32>().prop_map(StreamId::new);
        let (a, b, c, d, e) =
            (stream.clone(), stream.clone(), stream.clone(), stream.clone(), stream.clone());
        prop_oneof![
            (a, any::<bool>()).prop_map(move |(stream, fin)| ControlFrame::SynStream { stream, fin, block }),
            (b, any::<bool>()).prop_map(move |(stream, fin)| ControlFrame::SynReply { stream, fin, block }),
            (c, any::<bool>()).prop_map(move |(stream, fin)| ControlFrame::Headers { stream, fin, block }),
            (d, any::<u32>())
                .prop_map(|(stream, status)| ControlFrame::Reset { stream, status: ResetStatus(status) }),
            (e, any::<u32>())
                .prop_map(|(last, status)| ControlFrame::GoAway { last, status: GoAwayStatus(status) }),
            (stream, 0..1_u32 << 31).prop_map(|(stream, delta)| ControlFrame::WindowUpdate { stream, delta }),
            any::<Option<u32>>().prop_map(|initial_window| ControlFrame::Settings { initial_window }),
            any::<u32>().prop_map(ControlFrame::Ping),
            (10..u16::MAX).prop_map(ControlFrame::Unknown),
        ]
    }

    fn parse(frame: &[u8]) -> Result<ControlFrame<'_>, SpdyFrameError> {
        let (head, payload) = frame.split_first_chunk().unwrap();
        match SpdyFrameHeader::parse(*head)? {
            SpdyFrameHeader::Control { kind, flags, length } => {
                assert_eq!(length, payload.len());
                ControlFrame::parse(kind, flags, payload)
            }
            SpdyFrameHeader::Data { .. } => panic!("data"),
        }
    }

    proptest! {
        #[test]
        fn a_control_frame_is_read_as_it_was_written(control in controls(b"headers")) {
            let mut frame = Vec::new();
            control.encode(&mut frame);
            prop_assert_eq!(parse(&frame), Ok(control));
        }

        #[test]
        fn a_data_head_is_read_as_it_was_written(stream: u32, fin: bool, length in 0..1_u32 << 24) {
            let stream = StreamId::new(stream);
            let expected = SpdyFrameHeader::Data { stream, fin, length: usize::try_from(length).unwrap() };
            prop_assert_eq!(SpdyFrameHeader::parse(SpdyFrameHeader::data(stream, fin, length)), Ok(expected));
        }

        #[test]
        fn nothing_breaks_the_parser(kind in 0_u16..12, flags: u8, payload: Vec<u8>, head: [u8; HEAD]) {
            let _parsed = SpdyFrameHeader::parse(head);
            drop(ControlFrame::parse(kind, flags, &payload));
        }
    }

    #[test]
    fn invalid_frames_are_refused() {
        assert_eq!(SpdyFrameHeader::parse([0x80, 2, 0, 1, 0, 0, 0, 0]), Err(SpdyFrameError::Version(2)));
        assert_eq!(SpdyFrameHeader::parse([0x80, 3, 0, 1, 0, 1, 0, 1]), Err(SpdyFrameError::TooLarge(65537)));
        assert_eq!(ControlFrame::parse(6, 0, &[0; 5]), Err(SpdyFrameError::Length { kind: 6, length: 5 }));
        // A settings frame that declares four billion entries.
        assert_eq!(ControlFrame::parse(4, 0, &[0xff; 4]), Err(SpdyFrameError::Length { kind: 4, length: 4 }));
    }
}
