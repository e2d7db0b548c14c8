//! The errors of this crate, and their kinds. The texts quote content of registries and archives, so they
//! consist of [`Printable`].

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::printable::Printable;

/// An error of an image operation. Cloning it is cheap: several callers may wait for one pull.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The registry or the store does not have the object.
    #[error("{what} not found: {why}")]
    NotFound {
        /// The image, manifest or blob.
        what: Printable,
        /// The server or the part of the store that does not have it.
        why: Printable,
    },
    /// The registry requires credentials, or rejects those that were sent.
    #[error("{what}: {why}")]
    Unauthorized {
        /// The object or the URL of the request.
        what: Printable,
        /// The registry's answer.
        why: Printable,
    },
    /// The registry cannot be reached or has an internal error. A retry may succeed.
    #[error("{what}: {why}")]
    Unavailable {
        /// The object or the URL of the request.
        what: Printable,
        /// The failure of the connection, or the registry's answer.
        why: Printable,
    },
    /// Received content does not match its digest, its size or its format.
    #[error("{what}: {why}")]
    Corrupt {
        /// The manifest, config, layer or archive.
        what: Printable,
        /// The difference: in the digest, the size or the format.
        why: Printable,
    },
    /// The name is not an image reference.
    #[error("invalid image reference {reference:?}: {why}")]
    InvalidReference {
        /// The name as given.
        reference: Printable,
        /// The rule that the name violates.
        why: &'static str,
    },
    /// The node's policy rejects the image.
    #[error("{what}: {why}")]
    Untrusted {
        /// The image, or the policy itself.
        what: Printable,
        /// The requirement that is not met.
        why: Printable,
    },
    /// The caller's input or a configuration file is invalid.
    #[error("invalid {what}: {why}")]
    InvalidInput {
        /// The field or the file.
        what: Printable,
        /// The mistake in the field or file.
        why: Printable,
    },
    /// The content is well formed, but berth does not support it: schema 1, another platform, an artifact.
    #[error("{what}: {why}")]
    Unsupported {
        /// The image or a part of it.
        what: Printable,
        /// The type or platform that it has instead.
        why: Printable,
    },
    /// The content is larger than a limit.
    #[error("{what}: {why}")]
    LimitExceeded {
        /// The manifest or layer.
        what: Printable,
        /// The actual size and the limit.
        why: Printable,
    },
    /// A system call on the store's files failed.
    #[error("failed to {operation} {object}: {source}")]
    Io {
        /// The operation, a verb.
        operation: &'static str,
        /// The file or folder of the call.
        object: Printable,
        /// The error of the operating system.
        source: Arc<io::Error>,
    },
    /// An internal error of berth.
    #[error("failed to {operation}: {why}")]
    Internal {
        /// The operation, a verb with its object.
        operation: &'static str,
        /// The error that caused it.
        why: Printable,
    },
}

/// The kind of an error, by which callers decide what to do. The CRI's status codes follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The object does not exist.
    NotFound,
    /// Other credentials are needed.
    Unauthorized,
    /// A retry may succeed.
    Unavailable,
    /// The content is corrupt.
    Corrupt,
    /// The node's policy rejects it.
    Untrusted,
    /// The request or the configuration is invalid, or unsupported.
    InvalidInput,
    /// A limit is exceeded.
    LimitExceeded,
    /// The node or berth failed.
    Internal,
}

impl Error {
    /// Returns the kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Unauthorized { .. } => ErrorKind::Unauthorized,
            Self::Unavailable { .. } => ErrorKind::Unavailable,
            Self::Corrupt { .. } => ErrorKind::Corrupt,
            Self::Untrusted { .. } => ErrorKind::Untrusted,
            Self::InvalidReference { .. } | Self::InvalidInput { .. } | Self::Unsupported { .. } => {
                ErrorKind::InvalidInput
            }
            Self::LimitExceeded { .. } => ErrorKind::LimitExceeded,
            // A full disk is a limit of the node. The kubelet's garbage collection can free space.
            Self::Io { source, .. } if is_full(source) => ErrorKind::LimitExceeded,
            Self::Io { .. } | Self::Internal { .. } => ErrorKind::Internal,
        }
    }

    /// Returns the error of the system call on a file, if one is the cause.
    #[must_use]
    pub fn cause_in_files(&self) -> Option<&io::Error> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }

    /// Returns whether the process lacks descriptors or memory (errno(3)). Such an error is not evidence
    /// about the file.
    pub(crate) fn is_shortage(&self) -> bool {
        use rustix::io::Errno;
        let errno = self.cause_in_files().and_then(io::Error::raw_os_error).map(Errno::from_raw_os_error);
        matches!(errno, Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM))
    }

    pub(crate) fn not_found(what: impl Into<Printable>, why: impl ToString) -> Self {
        Self::NotFound { what: what.into(), why: why.to_string().into() }
    }

    pub(crate) fn unauthorized(what: impl Into<Printable>, why: impl ToString) -> Self {
        Self::Unauthorized { what: what.into(), why: why.to_string().into() }
    }

    pub(crate) fn unavailable(what: impl Into<Printable>, why: impl ToString) -> Self {
        Self::Unavailable { what: what.into(), why: why.to_string().into() }
    }

    /// Returns the same error with `object` as its subject, in place of the address of the request.
    pub(crate) fn about(self, object: &str) -> Self {
        match self {
            Self::Unavailable { what, why } if what.as_str() != object => {
                Self::unavailable(object, format!("{what}: {why}"))
            }
            other => other,
        }
    }

    pub(crate) fn corrupt(what: impl Into<Printable>, why: impl ToString) -> Self {
        Self::Corrupt { what: what.into(), why: why.to_string().into() }
    }

    pub(crate) fn untrusted(what: impl Into<Printable>, why: impl ToString) -> Self {
        Self::Untrusted { what: what.into(), why: why.to_string().into() }
    }

    pub(crate) fn invalid(what: impl Into<Printable>, why: impl ToString) -> Self {
        Self::InvalidInput { what: what.into(), why: why.to_string().into() }
    }

    pub(crate) fn unsupported(what: impl Into<Printable>, why: impl ToString) -> Self {
        Self::Unsupported { what: what.into(), why: why.to_string().into() }
    }

    pub(crate) fn limit(what: impl Into<Printable>, why: impl ToString) -> Self {
        Self::LimitExceeded { what: what.into(), why: why.to_string().into() }
    }

    pub(crate) fn internal(operation: &'static str, why: impl ToString) -> Self {
        Self::Internal { operation, why: why.to_string().into() }
    }

    pub(crate) fn io(operation: &'static str, path: impl AsRef<Path>, source: impl Into<io::Error>) -> Self {
        let object = path.as_ref().display().to_string().into();
        Self::Io { operation, object, source: Arc::new(source.into()) }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Runs blocking work (files, unpacking) outside the async worker threads.
pub(crate) async fn blocking<T, F>(operation: &'static str, work: F) -> Result<T, Error>
where
    F: FnOnce() -> Result<T, Error> + Send + 'static,
    T: Send + 'static,
{
    let span = tracing::Span::current();
    match tokio::task::spawn_blocking(move || span.in_scope(work)).await {
        Ok(result) => result,
        Err(error) => Err(Error::internal(operation, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_contain_no_terminal_control_characters() {
        let evil = "x\u{1b}[2J\u{202e}\u{9b}y".to_owned() + &"z".repeat(100_000);
        let errors = [
            Error::not_found(evil.as_str(), &evil),
            Error::unauthorized(evil.as_str(), &evil),
            Error::unavailable("x", &evil).about(&evil),
            Error::corrupt(evil.as_str(), &evil),
            Error::untrusted(evil.as_str(), &evil),
            Error::invalid(evil.as_str(), &evil),
            Error::unsupported(evil.as_str(), &evil),
            Error::limit(evil.as_str(), &evil),
            Error::io("read", &evil, io::ErrorKind::NotFound),
            Error::internal("x", &evil),
            evil.parse::<crate::Reference>().unwrap_err(),
            evil.parse::<crate::Digest>().unwrap_err(),
        ];
        for error in errors {
            let text = format!("{error} {error:?}");
            assert!(!text.contains(['\u{1b}', '\u{202e}', '\u{9b}']), "{text:?}");
            assert!(text.len() < 10_000, "{} bytes", text.len());
        }
    }
}
