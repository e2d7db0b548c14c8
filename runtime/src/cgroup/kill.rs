//! Kills everything in a cgroup. The processes are found by the cgroup, never by a remembered list.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::controllers::freezer;
use super::interface::Interface;
use super::members::processes;
use super::{CgroupError, Result};

/// The time limit for killed processes to end. A process in an uninterruptible sleep waits for its disk.
const PATIENCE: Duration = Duration::from_secs(10);

/// Kills everything in a folder of v2 and below, by `cgroup.kill` (Linux 5.14).
pub(super) fn kill_v2(folder: &Path) -> Result<()> {
    match fs::write(folder.join("cgroup.kill"), "1") {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(CgroupError::File { action: "kill", path: folder.to_owned(), source });
        }
    }
    let until = Instant::now() + PATIENCE;
    loop {
        let pids = processes(folder)?;
        if pids.is_empty() {
            return Ok(());
        }
        wait_for(&pids, folder, until)?;
    }
}

/// Kills everything in a folder of the v1 freezer and below. The processes are frozen while they are killed, so
/// that they cannot fork.
pub(super) fn kill_v1(folder: &Path) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        if processes(folder)?.is_empty() {
            return Ok(());
        }
        set_frozen(folder, true);
        let pids = processes(folder);
        let killed: Vec<i32> = pids?.into_iter().filter(|pid| kill(*pid)).collect();
        set_frozen(folder, false);
        wait_for(&killed, folder, until)?;
    }
}

/// Freezes or thaws a cgroup. If it no longer exists or has no freezer, its processes are killed without this.
fn set_frozen(folder: &Path, frozen: bool) {
    let _no_freezer = freezer::request(Interface::V1, folder, frozen);
}

fn kill(pid: i32) -> bool {
    match open(pid) {
        Some(process) => pidfd_send_signal(&process, Signal::KILL).is_ok(),
        None => false,
    }
}

fn open(pid: i32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

/// Waits until these processes have ended.
fn wait_for(pids: &[i32], folder: &Path, until: Instant) -> Result<()> {
    for pid in pids {
        let Some(process) = open(*pid) else { continue };
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        let mut fds = [PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)];
        if matches!(poll(&mut fds, Some(&timeout)), Ok(0)) {
            return Err(CgroupError::Alive { path: folder.to_owned(), pids: processes(folder)? });
        }
    }
    // A process leaves its cgroup slightly before or after its pidfd reports the end.
    if Instant::now() > until {
        return Err(CgroupError::Alive { path: folder.to_owned(), pids: pids.to_vec() });
    }
    std::thread::yield_now();
    Ok(())
}
