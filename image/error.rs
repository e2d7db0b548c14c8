//! The errors of this crate, and the few kinds by which callers tell them apart. Their texts quote what registries and
//! archives hold, so they consist of [`Printable`].

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::printable::Printable;

/// Why something about an image failed. Several callers may wait for one pull: the error is cheap to clone.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The registry or the store has no such thing.
    #[error("{what} not found: {why}")]
    NotFound {
        /// The image, manifest or blob.
        what: Printable,
        /// Who says so.
        why: Printable,
    },
    /// The registry wants other credentials, or any.
    #[error("{what}: {why}")]
    Unauthorized {
        /// What was asked for.
        what: Printable,
        /// The registry's answer.
        why: Printable,
    },
    /// The registry cannot be reached, or fails by itself, and may work later.
    #[error("{what}: {why}")]
    Unavailable {
        /// What was asked for.
        what: Printable,
        /// What happened.
        why: Printable,
    },
    /// What was received is not what its digest, its size or its format promises.
    #[error("{what}: {why}")]
    Corrupt {
        /// The manifest, config, layer or archive.
        what: Printable,
        /// How it differs.
        why: Printable,
    },
    /// A name is no image reference.
    #[error("invalid image reference {reference:?}: {why}")]
    InvalidReference {
        /// As it was given.
        reference: Printable,
        /// The rule that it breaks.
        why: &'static str,
    },
    /// The node's policy does not let it in.
    #[error("{what}: {why}")]
    Untrusted {
        /// The image, or the policy itself.
        what: Printable,
        /// What the policy wants.
        why: Printable,
    },
    /// What the caller or a configuration file gave is wrong.
    #[error("{what}: {why}")]
    InvalidInput {
        /// The field or the file.
        what: Printable,
        /// What is wrong with it.
        why: Printable,
    },
    /// It is well formed, but nothing that berth runs: schema 1, another platform, an artifact.
    #[error("{what}: {why}")]
    Unsupported {
        /// The image or the part of it.
        what: Printable,
        /// What it is instead.
        why: Printable,
    },
    /// It is larger than the limits allow.
    #[error("{what}: {why}")]
    LimitExceeded {
        /// The manifest or layer.
        what: Printable,
        /// The limit, in figures.
        why: Printable,
    },
    /// A call on the store's own files failed.
    #[error("{operation} {object}: {source}")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To which file.
        object: Printable,
        /// The reason.
        source: Arc<io::Error>,
    },
    /// berth itself is at fault.
    #[error("{operation}: {why}")]
    Internal {
        /// What was being done.
        operation: &'static str,
        /// The reason.
        why: Printable,
    },
}

/// What a caller does about an error; the CRI's codes follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// There is no such thing.
    NotFound,
    /// Other credentials are needed.
    Unauthorized,
    /// It may work later.
    Unavailable,
    /// The content is broken.
    Corrupt,
    /// The node's policy forbids it.
    Untrusted,
    /// The request asks for what cannot be.
    InvalidInput,
    /// A limit is reached.
    LimitExceeded,
    /// The node is at fault.
    Internal,
}

impl Error {
    /// The kind of this error.
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
            // A full disk is a limit of the node, and the kubelet's garbage collection helps against it.
            Self::Io { source, .. } if is_full(source) => ErrorKind::LimitExceeded,
            Self::Io { .. } | Self::Internal { .. } => ErrorKind::Internal,
        }
    }

    /// The error of the call on a file that it comes from, if it does.
    #[must_use]
    pub fn cause_in_files(&self) -> Option<&io::Error> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }

    /// The process lacks descriptors or memory (errno(3)): nothing is said about the file.
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

    /// The same, said of what was wanted rather than of the address that was asked.
    pub(crate) fn about(self, wanted: &str) -> Self {
        match self {
            Self::Unavailable { what, why } if what.as_str() != wanted => {
                Self::unavailable(wanted, format!("{what}: {why}"))
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

/// Runs what may block (files, unpacking) away from the threads that answer requests.
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
    fn no_error_carries_what_a_terminal_obeys() {
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
