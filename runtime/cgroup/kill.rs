//! The end of everything in a cgroup, by the cgroup and never by a list that somebody remembered.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{CgroupError, Result};

/// How long killed processes may take: one in an uninterruptible sleep takes as long as its disk.
const PATIENCE: Duration = Duration::from_secs(10);

/// Everything in a folder of v2 and below, by `cgroup.kill` (Linux 5.14).
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

/// Everything in a folder of the freezer and below: frozen, so that nothing is forked meanwhile, then killed.
pub(super) fn kill_v1(folder: &Path) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        if processes(folder)?.is_empty() {
            return Ok(());
        }
        set_frozen(folder, "FROZEN");
        let pids = processes(folder);
        let killed: Vec<i32> = pids?.into_iter().filter(|pid| kill(*pid)).collect();
        set_frozen(folder, "THAWED");
        wait_for(&killed, folder, until)?;
    }
}

/// A cgroup that is gone, or without a freezer, is killed as it is.
fn set_frozen(folder: &Path, state: &str) {
    let _no_freezer = fs::write(folder.join("freezer.state"), state);
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
        let mut wanted = [PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)];
        if matches!(poll(&mut wanted, Some(&timeout)), Ok(0)) {
            return Err(CgroupError::Alive { path: folder.to_owned(), pids: processes(folder)? });
        }
    }
    // A process leaves its cgroup a moment before or after its pidfd tells its end.
    if Instant::now() > until {
        return Err(CgroupError::Alive { path: folder.to_owned(), pids: pids.to_vec() });
    }
    std::thread::yield_now();
    Ok(())
}

/// The processes in a folder and those below it; none where it is not there.
pub(super) fn processes(folder: &Path) -> Result<Vec<i32>> {
    let mut pids = Vec::new();
    let mut folders: Vec<PathBuf> = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let path = folder.join("cgroup.procs");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            // ENODEV: the cgroup was removed between the open and the read.
            Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(19) => {
                continue;
            }
            Err(source) => return Err(CgroupError::File { action: "read", path, source }),
        };
        pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        let below = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        folders.extend(below.map(|entry| entry.path()));
    }
    Ok(pids)
}
