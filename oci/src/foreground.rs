//! Waits for a process in the foreground: passes on signals and, with a terminal, copies input and output.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berth_runtime::sys::{process, pty};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::stdio;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

use crate::child::FirstProcess;
use crate::error::{Error, Result};

/// The signals that are passed on.
const PASSED: [Signal; 7] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];

/// Signals that arrive at this process from now on.
#[derive(Debug)]
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// Blocks the signals, so that they can be read. A process that is cloned later resets this before its exec.
    pub(crate) fn catch() -> Result<Self> {
        let failed = |errno: nix::Error| Error::Io { action: "receive signals", source: errno.into() };
        let mut set = SigSet::empty();
        PASSED.into_iter().chain([Signal::SIGCHLD]).for_each(|signal| set.add(signal));
        set.thread_block().map_err(failed)?;
        SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map(Self).map_err(failed)
    }
}

/// The terminal of the caller in raw mode, until this is dropped.
struct RawMode(Termios);

impl RawMode {
    fn enter() -> Option<Self> {
        let before = tcgetattr(stdio::stdin()).ok().filter(|_| isatty(stdio::stdin()))?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdio::stdin(), OptionalActions::Now, &raw).ok().map(|()| Self(before))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // If the terminal is gone, there is nothing to restore.
        let _gone = tcsetattr(stdio::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Waits for the end of the process. Returns its exit code.
pub(crate) fn wait(child: &FirstProcess, terminal: Option<&OwnedFd>, signals: &Signals) -> Result<u8> {
    let _raw = terminal.and_then(|_| RawMode::enter());
    if let Some(terminal) = terminal {
        copy_size(terminal);
    }
    let mut relay = Relay { terminal, input: terminal.is_some() };
    loop {
        if let Some(ended) = child.ended()? {
            relay.finish();
            return Ok(u8::try_from(ended.code()).unwrap_or(u8::MAX));
        }
        relay.wait(child.pidfd.as_fd(), signals.0.as_fd());
        while let Ok(Some(info)) = signals.0.read_signal() {
            let number = i32::try_from(info.ssi_signo).unwrap_or(0);
            match terminal {
                Some(terminal) if Signal::try_from(number) == Ok(Signal::SIGWINCH) => copy_size(terminal),
                _ if Signal::try_from(number) == Ok(Signal::SIGCHLD) => {}
                _ => process::signal(child.pidfd.as_fd(), number)?,
            }
        }
    }
}

fn copy_size(terminal: &OwnedFd) {
    // A caller without a terminal has no size.
    if let Ok(size) = tcgetwinsize(stdio::stdin()) {
        drop(pty::resize(terminal.as_fd(), size.ws_col, size.ws_row));
    }
}

/// Copies between the caller's streams and a terminal.
struct Relay<'a> {
    terminal: Option<&'a OwnedFd>,
    /// Whether standard input has not ended.
    input: bool,
}

impl Relay<'_> {
    /// Waits for an event, and copies.
    fn wait(&mut self, child: BorrowedFd<'_>, signals: BorrowedFd<'_>) {
        let stdin = stdio::stdin();
        let mut watched = vec![PollFd::new(&child, PollFlags::IN), PollFd::new(&signals, PollFlags::IN)];
        watched.extend(self.terminal.map(|terminal| PollFd::new(terminal, PollFlags::IN)));
        if self.input {
            watched.push(PollFd::new(&stdin, PollFlags::IN));
        }
        let _interrupted = poll(&mut watched, None);
        let is_ready = |at: usize| watched.get(at).is_some_and(|fd| !fd.revents().is_empty());
        let (output, input) = (is_ready(2), is_ready(3));
        let Some(terminal) = self.terminal else { return };
        if output && !copy(terminal.as_fd(), stdio::stdout()) {
            self.terminal = None;
            self.input = false;
        } else if input && !copy(stdin, terminal.as_fd()) {
            self.input = false;
        }
    }

    /// Copies the rest of the output.
    fn finish(&mut self) {
        let Some(terminal) = self.terminal else { return };
        if rustix::io::ioctl_fionbio(terminal, true).is_ok() {
            while copy(terminal.as_fd(), stdio::stdout()) {}
        }
    }
}

/// Copies what is there. Returns whether more may come.
fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> bool {
    let mut buffer = [0_u8; 8192];
    let length = match rustix::io::read(from, &mut buffer) {
        Ok(length) => length,
        Err(Errno::INTR) => return true,
        Err(_) => return false,
    };
    let mut rest = buffer.get(..length).unwrap_or_default();
    while !rest.is_empty() {
        match rustix::io::write(to, rest) {
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    length > 0
}
