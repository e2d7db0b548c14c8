//! The task of the helper process of a restore, and the files through which it and the daemon exchange data.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use berth_runtime::plan::ContainerPlan;
use berth_runtime::restore::WORK;
use serde::{Deserialize, Serialize};

use super::received::ReceivedCheckpoint;

/// The file with the helper's order.
pub const ORDER: &str = "order.json";
/// The file with the system call filter of the new container.
pub const FILTER: &str = "filter.bpf";
/// The file with the reason why the restore failed.
pub const FAILURE: &str = "failure";
/// The file with the target of the link to a PID namespace that the container shares.
pub(super) const PIDS: &str = "pids";

/// The task of the helper.
#[derive(Debug, Serialize, Deserialize)]
pub struct RestoreOrder {
    /// The program CRIU.
    pub criu: PathBuf,
    /// The folder of the container's cgroup that lists its processes.
    pub cgroup: PathBuf,
    /// The names of the standard streams at the time of the dump.
    pub streams: Vec<String>,
    /// The plan of the container.
    pub plan: ContainerPlan,
}

impl RestoreOrder {
    /// Reads the order in a folder.
    pub(super) fn read(work: &ReceivedCheckpoint) -> Result<Self, String> {
        let text = fs::read(work.file(ORDER)).map_err(|error| format!("failed to read {ORDER}: {error}"))?;
        serde_json::from_slice(&text).map_err(|error| format!("failed to read {ORDER}: {error}"))
    }

    /// Lists the processes in the cgroup.
    pub(super) fn processes(&self) -> Result<Vec<i32>, String> {
        let text = fs::read_to_string(self.cgroup.join("cgroup.procs"));
        let text = text.map_err(|error| format!("failed to list the processes of its cgroup: {error}"))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }
}

/// Returns the folder of the checkpoint, as the helper and the check see it.
pub(super) fn work() -> ReceivedCheckpoint {
    ReceivedCheckpoint::at(WORK.into())
}

/// Writes a descriptor's content to a file, for the check.
///
/// # Errors
/// The filter cannot be read, or the file not written.
pub fn keep_filter(work: &ReceivedCheckpoint, filter: BorrowedFd<'_>) -> io::Result<()> {
    const LONGEST: usize = 4096 * 8;
    let bytes = berth_runtime::sys::fs::read_all(filter, LONGEST)
        .map_err(|error| io::Error::other(error.to_string()))?;
    fs::write(work.file(FILTER), bytes)
}
