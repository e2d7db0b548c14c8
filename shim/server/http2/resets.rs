//! The errors of HTTP/2 with which the server rejects a request before it reaches a service. The HTTP/2
//! library logs the cause only at level DEBUG, among much else.

use super::frame::{FrameHeader, GOAWAY, HEAD, RST_STREAM};

/// Names of the error codes that indicate a fault of the client (RFC 9113, section 7), by code, from
/// `PROTOCOL_ERROR` (1) on. Codes with an empty name are not logged.
const CODES: [&str; 14] = [
    "",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
];

/// An error that the server has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reset {
    /// An error of one request.
    Stream {
        /// The stream of the request.
        stream: u32,
        /// The name of the error code.
        code: &'static str,
    },
    /// An error of the connection.
    Connection {
        /// The name of the error code.
        code: &'static str,
    },
}

/// Watches the bytes that the server sends.
pub(super) struct Resets {
    peer: Option<i32>,
    /// The header of the current frame, and the fields of an error frame.
    start: [u8; HEAD + 8],
    filled: usize,
    /// How many bytes of the frame are to be skipped.
    skip: usize,
}

impl Resets {
    /// For a new connection.
    pub(super) fn new(peer: Option<i32>) -> Self {
        Self { peer, start: [0; HEAD + 8], filled: 0, skip: 0 }
    }

    /// Logs the errors among the bytes that were sent.
    pub(super) fn sent(&mut self, bytes: &[u8]) {
        self.watch(bytes, |peer, reset| match reset {
            Reset::Stream { stream, code } => {
                tracing::warn!(peer, stream, code, "rejected a request that is not valid HTTP/2");
            }
            Reset::Connection { code } => {
                tracing::warn!(peer, code, "closing a connection that is not valid HTTP/2");
            }
        });
    }

    /// Calls `report` for each error among the bytes.
    pub(super) fn watch(&mut self, mut bytes: &[u8], mut report: impl FnMut(Option<i32>, Reset)) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let now = self.skip.min(bytes.len());
                self.skip -= now;
                bytes = bytes.get(now..).unwrap_or_default();
                continue;
            }
            let needed = self.needed();
            let now = (needed - self.filled).min(bytes.len());
            let (taken, rest) = bytes.split_at(now);
            if let Some(place) = self.start.get_mut(self.filled..self.filled + now) {
                place.copy_from_slice(taken);
            }
            self.filled += now;
            bytes = rest;
            if self.filled == self.needed() {
                if let Some(reset) = self.reset() {
                    report(self.peer, reset);
                }
                self.skip =
                    FrameHeader::read(&self.start).map_or(0, |head| (HEAD + head.length) - self.filled);
                self.filled = 0;
            }
        }
    }

    /// Returns how many bytes of the frame are needed.
    fn needed(&self) -> usize {
        let head = if self.filled < HEAD { None } else { FrameHeader::read(&self.start) };
        match head {
            Some(FrameHeader { kind: RST_STREAM, length: 4.., .. }) => HEAD + 4,
            Some(FrameHeader { kind: GOAWAY, length: 8.., .. }) => HEAD + 8,
            _ => HEAD,
        }
    }

    /// Returns the error in the frame, if it is one.
    fn reset(&self) -> Option<Reset> {
        let head = FrameHeader::read(&self.start)?;
        let code = self.start.get(..self.filled)?.get(HEAD..)?.last_chunk::<4>()?;
        let code =
            CODES.get(usize::try_from(u32::from_be_bytes(*code)).ok()?).filter(|code| !code.is_empty())?;
        match head.kind {
            RST_STREAM => Some(Reset::Stream { stream: head.stream, code }),
            _ => Some(Reset::Connection { code }),
        }
    }
}
