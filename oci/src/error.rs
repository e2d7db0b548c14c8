//! Errors of the commands.

use std::io;
use std::path::{Path, PathBuf};

use berth_runtime::{cgroup, compile, seccomp, sys};

pub(crate) type Result<T> = std::result::Result<T, Error>;

/// An error of a command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("failed to {action} {}: {source}", .path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("invalid {}: {source}", .path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("invalid {field}: {why}")]
    Invalid { field: &'static str, why: String },
    #[error("{0} is not supported")]
    Unsupported(String),
    /// containerd compares a part of this text.
    #[error("container {0:?} does not exist")]
    NotFound(String),
    /// containerd compares a part of this text.
    #[error("container with id exists: {0}")]
    Exists(String),
    /// containerd compares this text.
    #[error("container not running")]
    NotRunning,
    #[error("container {id} is {state}")]
    State { id: String, state: &'static str },
    #[error("failed to {action} container {id}: {why}")]
    Container { action: &'static str, id: String, why: String },
    #[error("failed to {action}: {source}")]
    Io { action: &'static str, source: io::Error },
    #[error(transparent)]
    System(#[from] sys::Error),
    #[error(transparent)]
    Cgroup(#[from] cgroup::CgroupError),
    #[error(transparent)]
    CgroupPath(#[from] cgroup::CgroupPathError),
    #[error(transparent)]
    Spec(#[from] compile::CompileError),
    #[error(transparent)]
    Seccomp(#[from] seccomp::SeccompError),
}

/// Adds the action and the path to an error.
pub(crate) trait At<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::File { action, path: path.to_owned(), source })
    }
}

impl<T> At<T> for serde_json::Result<T> {
    fn at(self, _action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::Json { path: path.to_owned(), source })
    }
}
