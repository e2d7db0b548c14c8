//! The errors of cgroups.

use std::io;
use std::path::PathBuf;

use super::CgroupPathError;
use crate::sys;

/// An error of creating, changing or removing a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// An operation on a file or folder of a hierarchy failed.
    #[error("failed to {action} {}: {source}", path.display())]
    File {
        /// The operation.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A system call failed.
    #[error(transparent)]
    System(#[from] sys::Error),
    /// A requested limit needs a controller that this host does not have.
    #[error("failed to set {limit}: cgroup controller {controller:?} not found on this host")]
    NoController {
        /// The name of the limit.
        limit: &'static str,
        /// The controller.
        controller: &'static str,
    },
    /// The kernel rejected a limit's value.
    #[error("failed to set {} to {value:?}: {source}", path.display())]
    Refused {
        /// The limit's file.
        path: PathBuf,
        /// The rejected value.
        value: String,
        /// The cause.
        source: io::Error,
    },
    /// The cgroup no longer exists.
    #[error("cgroup {} not found", path.display())]
    Gone {
        /// A folder or file of the cgroup.
        path: PathBuf,
    },
    /// A change failed, and part of it could not be undone.
    #[error("{error}; then, while undoing: {}", undo_errors.join("; "))]
    UndoFailed {
        /// The error of the change.
        error: Box<CgroupError>,
        /// The errors of the undo.
        undo_errors: Vec<String>,
    },
    /// The OOM score of a process could not be set.
    #[error("failed to set oom_score_adj of process {pid} to {score}: {source}")]
    OomScore {
        /// The process's pid.
        pid: i32,
        /// The requested score.
        score: i32,
        /// The cause.
        source: io::Error,
    },
    /// A limit has an invalid name or value.
    #[error("invalid limit {key}={value:?}: {why}")]
    Value {
        /// The limit's name.
        key: String,
        /// The value.
        value: String,
        /// The rule that the value breaks.
        why: &'static str,
    },
    /// Processes in a cgroup are still running after they were killed.
    #[error("failed to kill cgroup {}: processes {pids:?} are still running", path.display())]
    Alive {
        /// The cgroup's folder.
        path: PathBuf,
        /// The pids of the processes.
        pids: Vec<i32>,
    },
    /// An invalid cgroup path.
    #[error(transparent)]
    Path(#[from] CgroupPathError),
}
