//! The encoding of messages: one JSON text per packet, or a memory file if the text is too long for a packet. Also
//! the fixed record with which a first process reports to its parent.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{InitFailure, Step};
use crate::sys;

/// The maximum length of a text in a packet. The default send buffer of a unix socket holds several such packets.
const IN_PACKET: usize = 48 << 10;

/// The maximum length of a text.
const LONGEST: usize = 16 << 20;

/// The content of a packet whose text is in the first descriptor.
const IN_FILE: &[u8] = b"@";

/// An error of sending or receiving a message.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// A system call on the socket failed.
    #[error(transparent)]
    System(#[from] sys::Error),
    /// The received text is not a valid message.
    #[error("invalid message: {0}")]
    Garbage(#[from] serde_json::Error),
    /// The message is longer than the maximum.
    #[error("invalid message: {0} bytes exceed the limit of {LONGEST}")]
    TooLong(usize),
    /// The peer does not read: too many messages are queued for it.
    #[error("failed to send a message: {0} messages are queued")]
    QueueFull(usize),
    /// The memory file of a long message is missing.
    #[error("invalid message: its memory file is missing")]
    NoText,
}

impl From<TransportError> for io::Error {
    fn from(error: TransportError) -> Self {
        match error {
            // Callers recognise EAGAIN as "would block" only if it is a raw OS error.
            TransportError::System(error) => Self::from_raw_os_error(error.raw()),
            other => Self::new(io::ErrorKind::InvalidData, other),
        }
    }
}

impl TransportError {
    /// Whether the call must be repeated later: no message has arrived, or the peer's buffer is full.
    #[must_use]
    pub fn would_block(&self) -> bool {
        matches!(self, Self::System(error) if error.errno == Errno::AGAIN)
    }
}

/// Sends a message with descriptors.
///
/// # Errors
/// The socket does not accept the message ([`TransportError::would_block`]), or the message is too long.
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

/// A received message.
#[derive(Debug)]
pub struct Received<T> {
    /// The decoded message.
    pub message: T,
    /// The descriptors that came with it. Empty if [`cut`](Self::cut) is set.
    pub descriptors: Vec<OwnedFd>,
    /// Whether descriptors were lost because this process has reached its limit of open files.
    pub cut: bool,
}

/// Receives a message with its descriptors. Returns `None` at the end of the connection. `buffer` is scratch space
/// that can be reused.
///
/// # Errors
/// No message has arrived ([`TransportError::would_block`]), or what arrived is not a valid message.
pub fn receive<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
    buffer: &mut Vec<u8>,
) -> Result<Option<Received<T>>, TransportError> {
    receive_with(socket, buffer, |text| serde_json::from_slice(text))
}

/// Like [`receive`], with another decoder.
///
/// # Errors
/// Those of [`receive`].
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
        // It is not known which descriptors are missing.
        descriptors.clear();
    }
    Ok(Some(Received { message, descriptors, cut }))
}

/// The maximum length of the detail in a failure's record.
const DETAIL: usize = 160;

/// The length of a record in bytes: kind, step, errno, index, length of the detail, the detail.
pub const RECORD: usize = 20 + DETAIL;

const READY: u32 = 1;
const FAILED: u32 = 2;
const MOVED: u32 = 3;
const LISTENER: u32 = 4;
const TERMINAL: u32 = 5;
const HOOKS: u32 = 6;
const RESTORED: u32 = 7;
const CREATED: u32 = 8;
const NO_INDEX: u32 = u32::MAX;

/// A report of a first process to its parent, over their socket: it has reached the gate, or it has failed. The
/// record has a fixed format, because the process that writes it may be in any state. If the socket ends after the
/// gate without another record, exec has succeeded: exec closes the socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The process has reached the gate.
    Ready,
    /// The terminal's master is in the packet's descriptors.
    Terminal,
    /// Another child of the keeper continues in its place. This is the first report of the new child. It was
    /// cloned inside the pod's user namespace, so that this user namespace owns its PID namespace, or into the PID
    /// namespace of other processes. The kernel specifies the sender (`SO_PASSCRED`).
    Moved,
    /// The process has loaded a filter that passes system calls to a supervisor. The filter's descriptor is in the
    /// packet.
    Listener,
    /// The container's environment exists. The process waits until the hooks of the host have run.
    Hooks,
    /// The program that restores a checkpoint has restored its processes, which do not run yet. The first of them takes its
    /// place when the socket ends.
    Restored {
        /// The pid in the keeper's PID namespace.
        pid: i32,
    },
    /// An OCI runtime has created the process, which becomes a child of the keeper.
    Created {
        /// The pid in the keeper's PID namespace.
        pid: i32,
    },
    /// A step has failed.
    Failed(InitFailure),
}

impl Report {
    /// Encodes the report.
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
            Self::Hooks => put(0, &HOOKS.to_ne_bytes()),
            Self::Moved => put(0, &MOVED.to_ne_bytes()),
            Self::Restored { pid } => {
                put(0, &RESTORED.to_ne_bytes());
                put(8, &pid.to_ne_bytes());
            }
            Self::Created { pid } => {
                put(0, &CREATED.to_ne_bytes());
                put(8, &pid.to_ne_bytes());
            }
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

    /// Decodes a record. Returns `None` if it is invalid.
    #[must_use]
    pub fn decode(record: &[u8]) -> Option<Self> {
        let word = |at: usize| -> Option<[u8; 4]> { record.get(at..at + 4)?.try_into().ok() };
        match u32::from_ne_bytes(word(0)?) {
            READY => Some(Self::Ready),
            LISTENER => Some(Self::Listener),
            TERMINAL => Some(Self::Terminal),
            HOOKS => Some(Self::Hooks),
            MOVED => Some(Self::Moved),
            RESTORED => Some(Self::Restored { pid: i32::from_ne_bytes(word(8)?) }),
            CREATED => Some(Self::Created { pid: i32::from_ne_bytes(word(8)?) }),
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

/// Returns as much of the detail as the record can hold, cut at a character boundary.
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
    fn long_messages_are_sent_as_files_with_their_descriptors() {
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
    fn pids_are_decoded_as_encoded() {
        for report in [Report::Created { pid: 7 }, Report::Restored { pid: i32::MAX }] {
            assert_eq!(Report::decode(&report.encode()), Some(report));
        }
    }

    #[test]
    fn invalid_messages_are_errors() {
        let (a, b) = sys::socket::pair().unwrap();
        sys::socket::send(a.as_fd(), b"[1", &[]).unwrap();
        assert!(matches!(receive::<Vec<u32>>(b.as_fd(), &mut Vec::new()), Err(TransportError::Garbage(_))));
        sys::socket::send(a.as_fd(), IN_FILE, &[]).unwrap();
        assert!(matches!(receive::<Vec<u32>>(b.as_fd(), &mut Vec::new()), Err(TransportError::NoText)));
    }

    proptest! {
        #[test]
        fn reports_are_decoded_as_encoded(errno in any::<i32>(), index in proptest::option::of(0..1000_u32), detail in ".{0,80}") {
            let detail = cut(&detail).to_owned();
            let report = Report::Failed(InitFailure { step: Step::Mount, errno, index, detail });
            prop_assert_eq!(Report::decode(&report.encode()), Some(report));
        }

        #[test]
        fn no_record_makes_the_decoder_panic(record in proptest::collection::vec(any::<u8>(), 0..RECORD + 8)) {
            let _report = Report::decode(&record);
        }
    }
}
