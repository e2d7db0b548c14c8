//! The process of a keeper, by its pidfd. The pidfd is the only proof that the keeper has ended, and the last
//! resort to end it.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::sys::{self, Context};

/// The process of a keeper.
#[derive(Debug)]
pub struct KeeperProcess {
    pid: i32,
    pidfd: OwnedFd,
}

impl KeeperProcess {
    /// Opens the process with this pid. The caller must be certain that it is a keeper.
    ///
    /// # Errors
    /// The process does not exist (`ESRCH`), or no descriptor is left (`EMFILE`).
    pub fn open(pid: i32) -> sys::Result<Self> {
        let raw = Pid::from_raw(pid).ok_or(rustix::io::Errno::SRCH).on("pidfd_open", pid)?;
        let pidfd = rustix::process::pidfd_open(raw, PidfdFlags::NONBLOCK).on("pidfd_open", pid)?;
        Ok(Self { pid, pidfd })
    }

    pub(super) fn new(pid: i32, pidfd: OwnedFd) -> Self {
        Self { pid, pidfd }
    }

    /// Returns its pid. Once the process has ended, another process may have the same pid.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits up to `timeout` for the process to end. Returns whether it has ended. A child of this process is
    /// reaped.
    #[must_use]
    pub fn has_ended(&self, timeout: Duration) -> bool {
        let timeout = Timespec::try_from(timeout).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        let mut fds = [PollFd::from_borrowed_fd(self.pidfd.as_fd(), PollFlags::IN)];
        let ended = matches!(poll(&mut fds, Some(&timeout)), Ok(count) if count > 0);
        if ended {
            // If the process is not a child of this one, there is nothing to reap.
            let _reaped = sys::process::reap(self.pidfd.as_fd());
        }
        ended
    }

    /// Kills the process (SIGKILL). Succeeds if it has ended already.
    pub fn kill(&self) {
        // The only other possible error is that the process has ended.
        let _gone = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Describes what the process is doing, for an error about a keeper that does not answer: "it is stopped", "it
    /// waits in io_schedule".
    #[must_use]
    pub fn describe(&self) -> String {
        let path = format!("/proc/{}", self.pid);
        let stat = fs::read_to_string(format!("{path}/stat")).unwrap_or_default();
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        let place = || match fs::read_to_string(format!("{path}/wchan")) {
            Ok(place) if !matches!(place.trim(), "" | "0") => format!("it waits in {}", place.trim()),
            _ => "it waits".to_owned(),
        };
        match state {
            Some('T' | 't') => format!("process {} is stopped (SIGSTOP or a debugger)", self.pid),
            Some('Z' | 'X') | None => format!("process {} has ended", self.pid),
            Some('D') => format!("process {} does not respond: {}, uninterruptibly", self.pid, place()),
            Some(_) => format!("process {} runs, but does not answer: {}", self.pid, place()),
        }
    }
}

impl AsFd for KeeperProcess {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl AsRawFd for KeeperProcess {
    fn as_raw_fd(&self) -> RawFd {
        self.pidfd.as_raw_fd()
    }
}
