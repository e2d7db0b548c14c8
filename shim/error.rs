//! The errors of CRI calls, and the only place that maps them to gRPC status codes. [`subsystems`] converts the errors
//! of the crates below and gives each its code; errors of this crate are converted where they are defined.
//!
//! The kubelet acts on three codes: `NotFound` (the object does not exist; no need to stop or remove it),
//! `DeadlineExceeded` (retry) and `Unimplemented` (use the older call). All others are for people who read events and
//! logs: each error names its object and its reason.

mod subsystems;

use std::fmt::Display;

use berth_image::printable;
use tonic::{Code, Status};

pub(crate) use subsystems::{code_of_file, subsystem};

/// The reason why a CRI call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CriError {
    /// The object does not exist.
    #[error("{kind} {id:?} not found")]
    NotFound {
        /// The kind of object: "pod sandbox", "container", "image".
        kind: &'static str,
        /// The id or name in the request.
        id: String,
    },
    /// The request is invalid, in any state of the node.
    #[error("invalid {field}: {why}")]
    InvalidArgument {
        /// The field of the request, as a dotted path.
        field: String,
        /// The reason why the field is invalid.
        why: String,
    },
    /// Another object has the name.
    #[error("{what} already exists: {holder}")]
    AlreadyExists {
        /// The object that the call would create.
        what: String,
        /// The id of the object that has the name.
        holder: String,
    },
    /// The state of the object does not allow the call.
    #[error("{what}: {why}")]
    FailedPrecondition {
        /// The object whose state is wrong.
        what: String,
        /// The state that prevents the call.
        why: String,
    },
    /// The client's request was tried and does not work: a command that does not exist, a mount with a missing source.
    /// A retry does not help.
    #[error("failed to {operation}: {why}")]
    Failed {
        /// The operation and its object, such as "start container abc".
        operation: String,
        /// Why it does not work, for the client.
        why: String,
    },
    /// A step took longer than it may.
    #[error("{what}")]
    DeadlineExceeded {
        /// The step and its object, as a whole message.
        what: String,
    },
    /// A service that berth needs does not answer, and may answer later: a registry, a keeper.
    #[error("{what}: {why}")]
    Unavailable {
        /// The service that does not answer.
        what: String,
        /// Why it does not answer.
        why: String,
    },
    /// A limit of the image, the disk or the addresses is reached.
    #[error("{what}: {why}")]
    ResourceExhausted {
        /// The resource or the operation that needs it.
        what: String,
        /// The limit that was reached, or why.
        why: String,
    },
    /// A crate below failed. Its error contains operation, object and reason.
    #[error("{message}")]
    Subsystem {
        /// The gRPC code of the failure.
        code: Code,
        /// The text of the error.
        message: String,
    },
    /// berth does not implement the call.
    #[error("berth does not implement {rpc}")]
    Unimplemented {
        /// The name of the RPC.
        rpc: &'static str,
    },
    /// The node or berth is at fault.
    #[error("failed to {operation}: {why}")]
    Internal {
        /// The operation and its object.
        operation: String,
        /// The error that caused it.
        why: String,
    },
    /// A call failed, and undoing its steps failed too.
    #[error("{error}; then, while undoing: {}", .undo.join("; "))]
    NotUndone {
        /// The reason why the call failed.
        error: Box<CriError>,
        /// Each step that could not be undone, and why.
        undo: Vec<String>,
    },
}

impl CriError {
    /// The object does not exist.
    pub fn not_found(kind: &'static str, id: impl Into<String>) -> Self {
        Self::NotFound { kind, id: id.into() }
    }

    /// A field of the request is invalid.
    pub fn invalid(field: impl Into<String>, why: impl Display) -> Self {
        Self::InvalidArgument { field: field.into(), why: why.to_string() }
    }

    /// Another object has the name.
    pub fn already_exists(what: impl Into<String>, holder: impl Into<String>) -> Self {
        Self::AlreadyExists { what: what.into(), holder: holder.into() }
    }

    /// The state of the object does not allow the call.
    pub fn precondition(what: impl Into<String>, why: impl Display) -> Self {
        Self::FailedPrecondition { what: what.into(), why: why.to_string() }
    }

    /// The client's request was tried and does not work. `operation` completes the sentence "failed to ...".
    pub fn failed(operation: impl Into<String>, why: impl Display) -> Self {
        Self::Failed { operation: operation.into(), why: why.to_string() }
    }

    /// A step took longer than it may.
    pub fn deadline(what: impl Into<String>) -> Self {
        Self::DeadlineExceeded { what: what.into() }
    }

    /// A service that berth needs does not answer.
    pub fn unavailable(what: impl Into<String>, why: impl Display) -> Self {
        Self::Unavailable { what: what.into(), why: why.to_string() }
    }

    /// A limit is reached.
    pub fn exhausted(what: impl Into<String>, why: impl Display) -> Self {
        Self::ResourceExhausted { what: what.into(), why: why.to_string() }
    }

    /// berth does not implement the call.
    #[must_use]
    pub fn unimplemented(rpc: &'static str) -> Self {
        Self::Unimplemented { rpc }
    }

    /// The node or berth is at fault. `operation` completes the sentence "failed to ...".
    pub fn internal(operation: impl Into<String>, why: impl Display) -> Self {
        Self::Internal { operation: operation.into(), why: why.to_string() }
    }

    /// Adds the steps that could not be undone to the error. The code stays the same.
    #[must_use]
    pub fn with_undo_errors(self, undo: &[String]) -> Self {
        if undo.is_empty() {
            return self;
        }
        Self::NotUndone { error: Box::new(self), undo: undo.to_vec() }
    }

    /// Returns the gRPC code that the kubelet and crictl expect.
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
            Self::Subsystem { code, .. } => *code,
            Self::Unimplemented { .. } => Code::Unimplemented,
            Self::Internal { .. } => Code::Internal,
            Self::NotUndone { error, .. } => error.code(),
        }
    }
}

impl From<CriError> for Status {
    fn from(error: CriError) -> Self {
        // The message can quote images, registries or programs, and is shown on terminals and in the kubelet's events.
        Self::new(error.code(), shortened(printable(&error.to_string(), usize::MAX)))
    }
}

/// The longest message in bytes. It travels in a header, where a byte can take three, and clients refuse headers over
/// 8 to 16 KiB.
const MAX_MESSAGE: usize = 2000;

/// Shortens a message that is too long for a header: leaves out its middle.
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
        assert_eq!(status.message(), "failed to start \\u{1b}]0;x\\u{7}: first line second \\u{202e}line");
    }

    #[test]
    fn each_error_names_its_object_and_has_its_code() {
        let cases = [
            (CriError::not_found("container", "abc"), Code::NotFound, "container \"abc\" not found"),
            (
                CriError::invalid("config.metadata", "is missing"),
                Code::InvalidArgument,
                "invalid config.metadata: is missing",
            ),
            (
                CriError::already_exists("pod sandbox web", "0123"),
                Code::AlreadyExists,
                "pod sandbox web already exists: 0123",
            ),
            (
                CriError::precondition("container abc", "it is running"),
                Code::FailedPrecondition,
                "container abc: it is running",
            ),
            (
                CriError::failed("start container abc", "exec \"foo\": no such file"),
                Code::FailedPrecondition,
                "failed to start container abc: exec \"foo\": no such file",
            ),
            (CriError::deadline("kill container abc"), Code::DeadlineExceeded, "kill container abc"),
            (CriError::unimplemented("Attach"), Code::Unimplemented, "berth does not implement Attach"),
            (CriError::internal("write x", "disk full"), Code::Internal, "failed to write x: disk full"),
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
