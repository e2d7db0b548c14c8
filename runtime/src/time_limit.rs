//! Waits for a program with a time limit, and reads its output meanwhile, so that the program never waits for a reader.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

/// The first bytes of a program's output.
pub(crate) struct Output {
    /// The pipe, until it ends. Without one, the output goes elsewhere.
    pipe: Option<OwnedFd>,
    /// The first bytes.
    text: Vec<u8>,
    /// The number of bytes that are kept.
    limit: usize,
}

impl Output {
    pub(crate) fn new(pipe: Option<OwnedFd>, limit: usize) -> Self {
        Self { pipe, text: Vec::new(), limit }
    }

    /// Reads what is there.
    fn read(&mut self) {
        let Some(pipe) = &self.pipe else { return };
        let mut piece = [0_u8; 4096];
        match rustix::io::read(pipe, &mut piece) {
            Ok(0) => self.pipe = None,
            Ok(length) => {
                let room = self.limit.saturating_sub(self.text.len());
                self.text.extend_from_slice(piece.get(..length.min(room)).unwrap_or_default());
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => self.pipe = None,
        }
    }

    /// Reads the rest. Processes that the program left behind may hold the pipe open: only what is there already is read.
    fn finish(&mut self) {
        let Some(pipe) = &self.pipe else { return };
        if rustix::io::ioctl_fionbio(pipe, true).is_ok() {
            // A pipe holds at most 64 KiB (pipe(7)).
            (0..16).for_each(|_| self.read());
        }
    }

    /// Returns the text, to be added to an error.
    pub(crate) fn message(&mut self) -> String {
        match self.text().as_str() {
            "" => String::new(),
            text => format!(": {text}"),
        }
    }

    /// Returns the text without the white space around it.
    pub(crate) fn text(&mut self) -> String {
        self.finish();
        String::from_utf8_lossy(&self.text).trim().to_owned()
    }
}

/// Waits for a program in its own process group. Returns how it ended, or `None` if it exceeded the time or was cancelled,
/// and was killed.
pub(crate) fn wait(
    child: &mut Child,
    output: &mut Output,
    allowed: Duration,
    cancel: Option<BorrowedFd<'_>>,
) -> io::Result<Option<ExitStatus>> {
    let start = Instant::now();
    let pid = Pid::from_child(child);
    // The child is not reaped yet, so the pid is its own.
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        let left = allowed.checked_sub(start.elapsed()).filter(|left| !left.is_zero());
        let (Some(left), false) = (left, is_cancelled(cancel)) else {
            // The group includes what the program has started. A program that has left it is killed as well.
            let _gone = kill_process_group(pid, Signal::KILL);
            child.kill()?;
            child.wait()?;
            return Ok(None);
        };
        let mut watched = vec![PollFd::new(&pidfd, PollFlags::IN)];
        watched.extend(output.pipe.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        let outputs = watched.len();
        watched.extend(cancel.as_ref().map(|cancel| PollFd::new(cancel, PollFlags::empty())));
        let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        match poll(&mut watched, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let has_output = watched.iter().take(outputs).skip(1).any(|pipe| !pipe.revents().is_empty());
        drop(watched);
        if has_output {
            output.read();
        }
    }
}

/// Whether the other end of a socket is closed.
fn is_cancelled(cancel: Option<BorrowedFd<'_>>) -> bool {
    let Some(cancel) = cancel else { return false };
    let cancel = cancel.as_fd();
    let mut watched = [PollFd::new(&cancel, PollFlags::empty())];
    poll(&mut watched, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok()
        && watched.iter().any(|fd| fd.revents().contains(PollFlags::HUP))
}
