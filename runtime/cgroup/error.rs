//! What can go wrong with a cgroup.

use std::io;
use std::path::PathBuf;

use super::CgroupPathError;
use crate::sys;

/// A cgroup could not be made, changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A file or folder of a hierarchy refused.
    #[error("{action} {}: {source}", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// To which.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A system call failed.
    #[error(transparent)]
    System(#[from] sys::Error),
    /// A limit is asked for whose controller this host does not have.
    #[error("the limit {limit} needs the cgroup controller {controller:?}, which this host does not have")]
    NoController {
        /// Which limit.
        limit: &'static str,
        /// Which controller.
        controller: &'static str,
    },
    /// The kernel takes a limit not as it is.
    #[error("failed to set {} to {value:?}: {source}", path.display())]
    Refused {
        /// The limit's file.
        path: PathBuf,
        /// What was to be written.
        value: String,
        /// Why it was refused.
        source: io::Error,
    },
    /// The cgroup is not there any more.
    #[error("the cgroup of {} is gone", path.display())]
    Gone {
        /// A folder or file of it.
        path: PathBuf,
    },
    /// A change failed, and some of it cannot be taken back.
    #[error("{error}; then, while undoing: {}", left.join("; "))]
    Partly {
        /// Why the change failed.
        error: Box<CgroupError>,
        /// What stays changed, and why.
        left: Vec<String>,
    },
    /// A process cannot be given a score.
    #[error("failed to set oom_score_adj of process {pid} to {score}: {source}")]
    OomScore {
        /// Which process.
        pid: i32,
        /// Which score.
        score: i32,
        /// Why it was refused.
        source: io::Error,
    },
    /// A value that is none.
    #[error("invalid limit {key}={value:?}: {why}")]
    Value {
        /// Which key.
        key: String,
        /// Which value.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// What is in a cgroup does not end.
    #[error("cgroup {}: processes {pids:?} do not end", path.display())]
    Alive {
        /// Which.
        path: PathBuf,
        /// Which processes.
        pids: Vec<i32>,
    },
    /// A path that is none.
    #[error(transparent)]
    Path(#[from] CgroupPathError),
}
