//! The errors of the CRI's calls, and the only place where they become gRPC status codes; [`sources`] has the errors of
//! the rooms below and the code of each.
//!
//! The kubelet acts on three codes: `NotFound` (the object is gone, no need to stop or remove it), `DeadlineExceeded`
//! (retry) and `Unimplemented` (use the older call). All others are for the people who read events and logs, which is
//! why each error names its object and its reason.

mod sources;

use std::fmt::Display;

use berth_image::printable;
use tonic::{Code, Status};

/// Why a call of the CRI failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CriError {
    /// There is no such object.
    #[error("{kind} {id:?} not found")]
    NotFound {
        /// What kind of object: "pod sandbox", "container", "image".
        kind: &'static str,
        /// As the client named it.
        id: String,
    },
    /// The request is wrong, whatever state the node is in.
    #[error("{field}: {why}")]
    InvalidArgument {
        /// The field of the request, in its dotted path.
        field: String,
        /// What is wrong with it.
        why: String,
    },
    /// Another object holds the name.
    #[error("{what} exists already: {holder}")]
    AlreadyExists {
        /// The object that was to be made.
        what: String,
        /// The id of the one that holds its name.
        holder: String,
    },
    /// The object is not in a state that allows the call.
    #[error("{what}: {why}")]
    FailedPrecondition {
        /// The object.
        what: String,
        /// What it would have to be.
        why: String,
    },
    /// What the client asked for was tried and does not work: a command that does not exist, a mount of what is not
    /// there. Trying the same again does not help.
    #[error("{operation}: {why}")]
    Failed {
        /// What was being done, to what.
        operation: String,
        /// The reason.
        why: String,
    },
    /// A step took longer than it may.
    #[error("{what}")]
    DeadlineExceeded {
        /// Which step, of what.
        what: String,
    },
    /// Something berth needs does not answer, and may do so later: a registry, a keeper.
    #[error("{what}: {why}")]
    Unavailable {
        /// What does not answer.
        what: String,
        /// The reason.
        why: String,
    },
    /// A limit is reached: of the image, of the disk, of addresses.
    #[error("{what}: {why}")]
    ResourceExhausted {
        /// What was to be had.
        what: String,
        /// Which limit.
        why: String,
    },
    /// A room below failed. Its error names operation, object and reason by itself.
    #[error("{message}")]
    Below {
        /// What the CRI says to such a failure.
        code: Code,
        /// The error, in its own words.
        message: String,
    },
    /// berth does not have this call.
    #[error("berth does not implement {rpc}")]
    Unimplemented {
        /// Its name.
        rpc: &'static str,
    },
    /// The node or berth itself is at fault.
    #[error("{operation}: {why}")]
    Internal {
        /// What was being done, to what.
        operation: String,
        /// The reason.
        why: String,
    },
    /// A call failed, and taking back what it had made failed as well.
    #[error("{error}; then, while undoing: {}", .undo.join("; "))]
    NotUndone {
        /// Why the call failed.
        error: Box<CriError>,
        /// Each step that could not be taken back, and why.
        undo: Vec<String>,
    },
}

impl CriError {
    /// There is no such object.
    pub fn not_found(kind: &'static str, id: impl Into<String>) -> Self {
        Self::NotFound { kind, id: id.into() }
    }

    /// A field of the request is wrong.
    pub fn invalid(field: impl Into<String>, why: impl Display) -> Self {
        Self::InvalidArgument { field: field.into(), why: why.to_string() }
    }

    /// Another object holds the name.
    pub fn already_exists(what: impl Into<String>, holder: impl Into<String>) -> Self {
        Self::AlreadyExists { what: what.into(), holder: holder.into() }
    }

    /// The object is not in a state that allows the call.
    pub fn precondition(what: impl Into<String>, why: impl Display) -> Self {
        Self::FailedPrecondition { what: what.into(), why: why.to_string() }
    }

    /// What the client asked for was tried and does not work.
    pub fn failed(operation: impl Into<String>, why: impl Display) -> Self {
        Self::Failed { operation: operation.into(), why: why.to_string() }
    }

    /// A step took longer than it may.
    pub fn deadline(what: impl Into<String>) -> Self {
        Self::DeadlineExceeded { what: what.into() }
    }

    /// Something berth needs does not answer.
    pub fn unavailable(what: impl Into<String>, why: impl Display) -> Self {
        Self::Unavailable { what: what.into(), why: why.to_string() }
    }

    /// A limit is reached.
    pub fn exhausted(what: impl Into<String>, why: impl Display) -> Self {
        Self::ResourceExhausted { what: what.into(), why: why.to_string() }
    }

    /// berth does not have this call.
    #[must_use]
    pub fn unimplemented(rpc: &'static str) -> Self {
        Self::Unimplemented { rpc }
    }

    /// The node or berth itself is at fault.
    pub fn internal(operation: impl Into<String>, why: impl Display) -> Self {
        Self::Internal { operation: operation.into(), why: why.to_string() }
    }

    /// The same error, with what could not be taken back after it. The code stays that of the error.
    #[must_use]
    pub fn with_undo_errors(self, undo: &[String]) -> Self {
        if undo.is_empty() {
            return self;
        }
        Self::NotUndone { error: Box::new(self), undo: undo.to_vec() }
    }

    /// The gRPC code that the kubelet and crictl expect.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } => Code::NotFound,
            Self::InvalidArgument { .. } => Code::InvalidArgument,
            Self::AlreadyExists { .. } => Code::AlreadyExists,
            Self::FailedPrecondition { .. } | Self::Failed { .. } => Code::FailedPrecondition,
            Self::DeadlineExceeded { .. } => Code::DeadlineExceeded,
            Self::Unavailable { .. } => Code::Unavailable,
            Self::ResourceExhausted { .. } => Code::ResourceExhausted,
            Self::Below { code, .. } => *code,
            Self::Unimplemented { .. } => Code::Unimplemented,
            Self::Internal { .. } => Code::Internal,
            Self::NotUndone { error, .. } => error.code(),
        }
    }
}

impl From<CriError> for Status {
    fn from(error: CriError) -> Self {
        // Some of it quotes images, registries or programs: it ends on terminals and in the kubelet's events.
        Self::new(error.code(), shortened(printable(&error.to_string(), usize::MAX)))
    }
}

/// Bytes of a message: it travels in a header, in which each may take three, and clients refuse headers over 8 to 16 KiB.
const MAX_MESSAGE: usize = 2000;

/// A message that a client can receive: the middle of one that quotes something huge is left out.
fn shortened(message: String) -> String {
    if message.len() <= MAX_MESSAGE {
        return message;
    }
    let half = MAX_MESSAGE / 2;
    let start = message.floor_char_boundary(half);
    let end = message.ceil_char_boundary(message.len() - half);
    let (head, tail) = (message.get(..start).unwrap_or_default(), message.get(end..).unwrap_or_default());
    format!("{head} [...] {tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_fits_into_a_header() {
        let status = Status::from(CriError::not_found("container", "ä".repeat(1 << 20)));
        assert!(status.message().len() < MAX_MESSAGE + 10);
        assert!(status.message().starts_with("container \"ä"), "{status}");
        assert!(status.message().ends_with("not found"), "{status}");
    }

    #[test]
    fn a_message_is_one_line_that_no_terminal_obeys() {
        let status =
            Status::from(CriError::failed("start \u{1b}]0;x\u{7}", "first line\nsecond \u{202e}line"));
        assert_eq!(status.message(), "start \\u{1b}]0;x\\u{7}: first line second \\u{202e}line");
    }

    #[test]
    fn each_error_names_its_object_and_has_its_code() {
        let cases = [
            (CriError::not_found("container", "abc"), Code::NotFound, "container \"abc\" not found"),
            (
                CriError::invalid("config.metadata", "is missing"),
                Code::InvalidArgument,
                "config.metadata: is missing",
            ),
            (
                CriError::already_exists("pod sandbox web", "0123"),
                Code::AlreadyExists,
                "pod sandbox web exists already: 0123",
            ),
            (
                CriError::precondition("container abc", "it is running"),
                Code::FailedPrecondition,
                "container abc: it is running",
            ),
            (
                CriError::failed("start container abc", "exec \"foo\": no such file"),
                Code::FailedPrecondition,
                "start container abc: exec \"foo\": no such file",
            ),
            (CriError::deadline("kill container abc"), Code::DeadlineExceeded, "kill container abc"),
            (CriError::unimplemented("Attach"), Code::Unimplemented, "berth does not implement Attach"),
            (CriError::internal("write x", "disk full"), Code::Internal, "write x: disk full"),
        ];
        for (error, code, text) in cases {
            let status = Status::from(error);
            assert_eq!((status.code(), status.message()), (code, text));
        }
    }

    #[test]
    fn undo_errors_are_added_and_the_code_stays() {
        let error = CriError::not_found("image", "web");
        assert_eq!(error.clone().with_undo_errors(&[]), error);
        let status = Status::from(error.with_undo_errors(&["remove the cgroup: busy".to_owned()]));
        assert_eq!(status.code(), Code::NotFound);
        assert_eq!(status.message(), "image \"web\" not found; then, while undoing: remove the cgroup: busy");
    }
}
