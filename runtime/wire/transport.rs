//! How messages travel: one JSON text a packet, or a memory file where it is too long for one; and the fixed record in
//! which a first process tells its parent how it went.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{InitFailure, Step};
use crate::sys;

/// The longest text that goes in a packet: it fits the default send buffer of a unix socket several times.
const IN_PACKET: usize = 48 << 10;

/// The longest text at all.
const LONGEST: usize = 16 << 20;

/// The packet that says that the text is in the first descriptor.
const IN_FILE: &[u8] = b"@";

/// Why a message did not travel.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The socket refused.
    #[error(transparent)]
    System(#[from] sys::Error),
    /// What came is no message.
    #[error("a message that cannot be read: {0}")]
    Garbage(#[from] serde_json::Error),
    /// A message is longer than any may be.
    #[error("a message of {0} bytes")]
    TooLong(usize),
    /// The memory file of a long message is missing.
    #[error("a long message without its text")]
    NoText,
}

impl From<TransportError> for io::Error {
    fn from(error: TransportError) -> Self {
        match error {
            // Only as a raw error is EAGAIN understood as "would block".
            TransportError::System(error) => Self::from_raw_os_error(error.raw()),
            other => Self::new(io::ErrorKind::InvalidData, other),
        }
    }
}

impl TransportError {
    /// Nothing is there yet, or the peer is behind.
    #[must_use]
    pub fn would_block(&self) -> bool {
        matches!(self, Self::System(error) if error.errno == Errno::AGAIN)
    }
}

/// Sends a message with descriptors.
///
/// # Errors
/// The socket refuses ([`TransportError::would_block`]), or the message is too long.
pub fn send<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), TransportError> {
    let text = serde_json::to_vec(message)?;
    if text.len() <= IN_PACKET {
        return Ok(sys::socket::send(socket, &text, descriptors)?);
    }
    if text.len() > LONGEST {
        return Err(TransportError::TooLong(text.len()));
    }
    let file = sys::fs::sealed("message", &text, false)?;
    let mut all = vec![file.as_fd()];
    all.extend_from_slice(descriptors);
    Ok(sys::socket::send(socket, IN_FILE, &all)?)
}

/// A message that was received.
#[derive(Debug)]
pub struct Received<T> {
    /// What it says.
    pub message: T,
    /// What came with it; none where [`cut`](Self::cut).
    pub descriptors: Vec<OwnedFd>,
    /// Its descriptors are lost: this process may not open that many.
    pub cut: bool,
}

/// Receives a message with its descriptors; `None` is the end of the connection. `buffer` is for reuse.
///
/// # Errors
/// Nothing is there ([`TransportError::would_block`]), or what came is no message.
pub fn receive<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
    buffer: &mut Vec<u8>,
) -> Result<Option<Received<T>>, TransportError> {
    receive_with(socket, buffer, |text| serde_json::from_slice(text))
}

/// The same, for a reader that understands more than one kind of message.
///
/// # Errors
/// As [`receive`].
pub fn receive_with<T>(
    socket: BorrowedFd<'_>,
    buffer: &mut Vec<u8>,
    decode: impl FnOnce(&[u8]) -> serde_json::Result<T>,
) -> Result<Option<Received<T>>, TransportError> {
    buffer.resize(IN_PACKET, 0);
    let sys::socket::Packet { length, mut descriptors, cut, .. } = sys::socket::receive_from(socket, buffer)?;
    let packet = buffer.get(..length).unwrap_or_default();
    if packet.is_empty() {
        return Ok(None);
    }
    let message = match packet {
        IN_FILE if descriptors.is_empty() => return Err(TransportError::NoText),
        IN_FILE => decode(&sys::fs::read_all(descriptors.remove(0), LONGEST)?)?,
        packet => decode(packet)?,
    };
    if cut {
        // Which of them came cannot be told.
        descriptors.clear();
    }
    Ok(Some(Received { message, descriptors, cut }))
}

/// Bytes of the words in a failure's record.
const DETAIL: usize = 160;

/// Bytes of a record: kind, step, errno, index, length of the detail, the detail.
pub const RECORD: usize = 20 + DETAIL;

const READY: u32 = 1;
const FAILED: u32 = 2;
const MOVED: u32 = 3;
const LISTENER: u32 = 4;
const TERMINAL: u32 = 5;
const NO_INDEX: u32 = u32::MAX;

/// What a first process tells its parent over their socket: it has reached the gate, or it has failed. It is a fixed
/// record, since the process that writes it may be in any state. The end of the socket without a record after the
/// gate means that exec has succeeded: the socket is closed by exec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The gate is reached.
    Ready,
    /// The master of the terminal comes along.
    Terminal,
    /// Another child of the keeper goes on in its place, and tells so first of all: one that was cloned inside the pod's
    /// user namespace, so that its process namespace belongs to that, or one in the PID namespace of others. The kernel
    /// says which it is (`SO_PASSCRED`).
    Moved,
    /// The filter is loaded that hands calls over to a supervisor; its descriptor comes along.
    Listener,
    /// A step has failed.
    Failed(InitFailure),
}

impl Report {
    /// The record.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD] {
        let mut record = [0_u8; RECORD];
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(place) = record.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        };
        match self {
            Self::Ready => put(0, &READY.to_ne_bytes()),
            Self::Listener => put(0, &LISTENER.to_ne_bytes()),
            Self::Terminal => put(0, &TERMINAL.to_ne_bytes()),
            Self::Moved => put(0, &MOVED.to_ne_bytes()),
            Self::Failed(failure) => {
                let detail = cut(&failure.detail);
                put(0, &FAILED.to_ne_bytes());
                put(4, &failure.step.number().to_ne_bytes());
                put(8, &failure.errno.to_ne_bytes());
                put(12, &failure.index.unwrap_or(NO_INDEX).to_ne_bytes());
                put(16, &u32::try_from(detail.len()).unwrap_or(0).to_ne_bytes());
                put(20, detail.as_bytes());
            }
        }
        record
    }

    /// The report of a record; `None` for what is none.
    #[must_use]
    pub fn decode(record: &[u8]) -> Option<Self> {
        let word = |at: usize| -> Option<[u8; 4]> { record.get(at..at + 4)?.try_into().ok() };
        match u32::from_ne_bytes(word(0)?) {
            READY => Some(Self::Ready),
            LISTENER => Some(Self::Listener),
            TERMINAL => Some(Self::Terminal),
            MOVED => Some(Self::Moved),
            FAILED => {
                let length = usize::try_from(u32::from_ne_bytes(word(16)?)).ok()?;
                let detail = record.get(20..)?.get(..length)?;
                let index = u32::from_ne_bytes(word(12)?);
                Some(Self::Failed(InitFailure {
                    step: Step::from_number(u32::from_ne_bytes(word(4)?))?,
                    errno: i32::from_ne_bytes(word(8)?),
                    index: (index != NO_INDEX).then_some(index),
                    // Replacement characters are longer than the invalid bytes that they replace.
                    detail: cut(&String::from_utf8_lossy(detail)).to_owned(),
                }))
            }
            _ => None,
        }
    }
}

/// As much of the words as the record holds, at a character's border.
fn cut(detail: &str) -> &str {
    let mut end = detail.len().min(DETAIL);
    while !detail.is_char_boundary(end) {
        end -= 1;
    }
    detail.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn long_messages_travel_as_files_with_their_descriptors() {
        let (a, b) = sys::socket::pair().unwrap();
        let message = vec!["x".repeat(200 << 10)];
        let extra = sys::fs::sealed("extra", b"extra", false).unwrap();
        send(a.as_fd(), &message, &[extra.as_fd()]).unwrap();
        let got = receive::<Vec<String>>(b.as_fd(), &mut Vec::new()).unwrap().unwrap();
        assert_eq!((got.message, got.cut), (message, false));
        assert_eq!(sys::fs::read_all(&got.descriptors[0], 100).unwrap(), b"extra");
        drop(a);
        assert!(receive::<Vec<String>>(b.as_fd(), &mut Vec::new()).unwrap().is_none());
    }

    #[test]
    fn garbage_is_an_error() {
        let (a, b) = sys::socket::pair().unwrap();
        sys::socket::send(a.as_fd(), b"[1", &[]).unwrap();
        assert!(matches!(receive::<Vec<u32>>(b.as_fd(), &mut Vec::new()), Err(TransportError::Garbage(_))));
        sys::socket::send(a.as_fd(), IN_FILE, &[]).unwrap();
        assert!(matches!(receive::<Vec<u32>>(b.as_fd(), &mut Vec::new()), Err(TransportError::NoText)));
    }

    proptest! {
        #[test]
        fn reports_survive_the_record(errno in any::<i32>(), index in proptest::option::of(0..1000_u32), detail in ".{0,80}") {
            let detail = cut(&detail).to_owned();
            let report = Report::Failed(InitFailure { step: Step::Mount, errno, index, detail });
            prop_assert_eq!(Report::decode(&report.encode()), Some(report));
        }

        #[test]
        fn no_record_makes_the_decoder_fail(record in proptest::collection::vec(any::<u8>(), 0..RECORD + 8)) {
            let _report = Report::decode(&record);
        }
    }
}
