//! The header of an HTTP/2 frame (RFC 9113, section 4.1).

/// Length of a frame header in bytes.
pub(super) const HEAD: usize = 9;
/// The longest payload if the setting `SETTINGS_MAX_FRAME_SIZE` is not changed.
pub(super) const MAX_PAYLOAD: usize = 16 << 10;

/// Frame type `HEADERS`.
pub(super) const HEADERS: u8 = 1;
/// Frame type `RST_STREAM`.
pub(super) const RST_STREAM: u8 = 3;
/// Frame type `GOAWAY`.
pub(super) const GOAWAY: u8 = 7;
/// Frame type `CONTINUATION`.
pub(super) const CONTINUATION: u8 = 9;

/// Flag `END_HEADERS` of HEADERS and CONTINUATION.
pub(super) const END_HEADERS: u8 = 0x4;
/// Flag `PADDED` of HEADERS.
pub(super) const PADDED: u8 = 0x8;
/// Flag `PRIORITY` of HEADERS.
pub(super) const PRIORITY: u8 = 0x20;

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    /// Length of the payload.
    pub(super) length: usize,
    /// Frame type.
    pub(super) kind: u8,
    /// Flags, which depend on the type.
    pub(super) flags: u8,
    /// Stream identifier; 0 is the connection.
    pub(super) stream: u32,
}

impl FrameHeader {
    /// Reads the header at the start of `bytes`; none if it is incomplete.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let [l1, l2, l3, kind, flags, s1, s2, s3, s4] = *bytes.first_chunk::<HEAD>()?;
        let length = usize::try_from(u32::from_be_bytes([0, l1, l2, l3])).ok()?;
        // The highest bit is reserved.
        Some(Self { length, kind, flags, stream: u32::from_be_bytes([s1, s2, s3, s4]) & (u32::MAX >> 1) })
    }

    /// Encodes the header. `length` is at most [`MAX_PAYLOAD`].
    pub(super) fn bytes(self) -> [u8; HEAD] {
        let [.., l1, l2, l3] = self.length.to_be_bytes();
        let [s1, s2, s3, s4] = self.stream.to_be_bytes();
        [l1, l2, l3, self.kind, self.flags, s1, s2, s3, s4]
    }

    /// Returns whether the frame has this flag.
    pub(super) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}
