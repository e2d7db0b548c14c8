//! The errors of this crate, and the few kinds by which callers tell them apart.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why something about an image failed. Several callers may wait for one pull: the error is cheap to clone.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The registry or the store has no such thing.
    #[error("{what} not found: {why}")]
    NotFound {
        /// The image, manifest or blob.
        what: String,
        /// Who says so.
        why: String,
    },
    /// The registry wants other credentials, or any.
    #[error("{what}: {why}")]
    Unauthorized {
        /// What was asked for.
        what: String,
        /// The registry's answer.
        why: String,
    },
    /// The registry cannot be reached, or fails by itself, and may work later.
    #[error("{what}: {why}")]
    Unavailable {
        /// What was asked for.
        what: String,
        /// What happened.
        why: String,
    },
    /// What was received is not what its digest, its size or its format promises.
    #[error("{what}: {why}")]
    Corrupt {
        /// The manifest, config, layer or archive.
        what: String,
        /// How it differs.
        why: String,
    },
    /// A name is no image reference.
    #[error("invalid image reference {reference:?}: {why}")]
    InvalidReference {
        /// As it was given.
        reference: String,
        /// The rule that it breaks.
        why: &'static str,
    },
    /// The node's policy does not let it in.
    #[error("{what}: {why}")]
    Untrusted {
        /// The image, or the policy itself.
        what: String,
        /// What the policy wants.
        why: String,
    },
    /// What the caller or a configuration file gave is wrong.
    #[error("{what}: {why}")]
    InvalidInput {
        /// The field or the file.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// It is well formed, but nothing that berth runs: schema 1, another platform, an artifact.
    #[error("{what}: {why}")]
    Unsupported {
        /// The image or the part of it.
        what: String,
        /// What it is instead.
        why: String,
    },
    /// It is larger than the limits allow.
    #[error("{what}: {why}")]
    LimitExceeded {
        /// The manifest or layer.
        what: String,
        /// The limit, in figures.
        why: String,
    },
    /// A call on the store's own files failed.
    #[error("{operation} {}: {source}", .path.display())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To which file.
        path: PathBuf,
        /// The reason.
        source: Arc<io::Error>,
    },
    /// berth itself is at fault.
    #[error("{operation}: {why}")]
    Internal {
        /// What was being done.
        operation: &'static str,
        /// The reason.
        why: String,
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

    pub(crate) fn not_found(what: impl Into<String>, why: impl ToString) -> Self {
        Self::NotFound { what: what.into(), why: why.to_string() }
    }

    pub(crate) fn unauthorized(what: impl Into<String>, why: impl ToString) -> Self {
        Self::Unauthorized { what: what.into(), why: why.to_string() }
    }

    pub(crate) fn unavailable(what: impl Into<String>, why: impl ToString) -> Self {
        Self::Unavailable { what: what.into(), why: why.to_string() }
    }

    /// The same, said of what was wanted rather than of the address that was asked.
    pub(crate) fn about(self, wanted: &str) -> Self {
        match self {
            Self::Unavailable { what, why } if what != wanted => {
                Self::Unavailable { what: wanted.to_owned(), why: format!("{what}: {why}") }
            }
            other => other,
        }
    }

    pub(crate) fn corrupt(what: impl Into<String>, why: impl ToString) -> Self {
        Self::Corrupt { what: what.into(), why: why.to_string() }
    }

    pub(crate) fn untrusted(what: impl Into<String>, why: impl ToString) -> Self {
        Self::Untrusted { what: what.into(), why: why.to_string() }
    }

    pub(crate) fn invalid(what: impl Into<String>, why: impl ToString) -> Self {
        Self::InvalidInput { what: what.into(), why: why.to_string() }
    }

    pub(crate) fn unsupported(what: impl Into<String>, why: impl ToString) -> Self {
        Self::Unsupported { what: what.into(), why: why.to_string() }
    }

    pub(crate) fn limit(what: impl Into<String>, why: impl ToString) -> Self {
        Self::LimitExceeded { what: what.into(), why: why.to_string() }
    }

    pub(crate) fn internal(operation: &'static str, why: impl ToString) -> Self {
        Self::Internal { operation, why: why.to_string() }
    }

    pub(crate) fn io(operation: &'static str, path: impl AsRef<Path>, source: impl Into<io::Error>) -> Self {
        Self::Io { operation, path: path.as_ref().to_owned(), source: Arc::new(source.into()) }
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
