//! Processes: waiting and signals by pidfd, exit, and the signal state that a new program expects.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use super::program::CStrings;
use super::{Context, Result, checked};

/// Ends this process immediately, without running destructors or flushing buffers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) is safe at any point of a process.
    unsafe { libc::_exit(code) }
}

/// The way in which a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It exited with this code.
    Code(i32),
    /// This signal terminated it.
    Signal(i32),
}

impl Ended {
    /// Returns the exit code, or 128 plus the signal's number, as in shells and in the CRI.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128_i32.saturating_add(signal),
        }
    }
}

/// Reaps a child by its pidfd if it has ended.
///
/// # Errors
/// The process is not a child of this one.
pub fn reap(pidfd: BorrowedFd<'_>) -> Result<Option<Ended>> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let status = rustix::process::waitid(WaitId::PidFd(pidfd), options).on("waitid", "pidfd")?;
    Ok(status.map(|status| match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Ended::Code(code),
        (None, signal) => Ended::Signal(signal.unwrap_or(0)),
    }))
}

/// Waits for the end of a child and reaps it.
///
/// # Errors
/// The process is not a child of this one.
pub fn wait(pidfd: BorrowedFd<'_>) -> Result<()> {
    loop {
        match rustix::process::waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED) {
            Err(Errno::INTR) => {}
            waited => return waited.map(drop).on("waitid", "pidfd"),
        }
    }
}

/// Returns the pid of a child that has ended, without reaping it.
#[must_use]
pub fn peek_ended() -> Option<i32> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    // SAFETY: siginfo_t is plain data, for which all zeroes are valid. The call only writes to it.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = i32::try_from(options.bits()).unwrap_or(0);
    // SAFETY: `info` is a live siginfo_t.
    let result = unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) };
    if result != 0 {
        return None;
    }
    // SAFETY: after a successful waitid the pid is valid. It is 0 if no child has ended.
    let pid = unsafe { info.si_pid() };
    (pid > 0).then_some(pid)
}

/// Reaps a child by its pid if it has ended. If it is not a child, or has not ended, there is nothing to reap.
pub fn reap_pid(pid: i32) -> Option<Ended> {
    let pid = Pid::from_raw(pid)?;
    let waited = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::NOHANG);
    let (_, status) = waited.ok().flatten()?;
    status.exit_status().map(Ended::Code).or_else(|| status.terminating_signal().map(Ended::Signal))
}

/// Opens a pidfd of a child of this process by its pid. The pid cannot be reused before the child is reaped.
///
/// # Errors
/// The process is not a child of this one (`ECHILD`).
pub fn child(pid: i32) -> Result<OwnedFd> {
    let child = Pid::from_raw(pid).ok_or(Errno::CHILD);
    let pidfd = child.and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()));
    let pidfd = pidfd.on("pidfd_open", pid)?;
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), options).on("waitid", pid)?;
    Ok(pidfd)
}

/// Opens a pidfd by a pid. The caller knows that the process has not been reaped.
///
/// # Errors
/// The process does not exist (`ESRCH`).
pub fn open(pid: i32) -> Result<OwnedFd> {
    let process = Pid::from_raw(pid).ok_or(Errno::SRCH);
    process.and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty())).on("pidfd_open", pid)
}

/// Sends a signal to the process of a pidfd. Succeeds if the process has ended.
///
/// # Errors
/// The signal is invalid, or the caller lacks the privilege.
pub fn signal(pidfd: BorrowedFd<'_>, number: i32) -> Result<()> {
    // SAFETY: the arguments are a live descriptor, a number, no siginfo and no flags.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            number,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    match checked(result) {
        Ok(_) | Err(Errno::SRCH) => Ok(()),
        Err(errno) => Err(errno).on("pidfd_send_signal", number),
    }
}

/// Kills the process of a pidfd. Succeeds if the process has ended.
pub fn kill(pidfd: BorrowedFd<'_>) {
    // The only other possible error is that the process has ended.
    let _gone = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
}

/// Executes the program in a descriptor (execveat(2)). Returns only on failure.
#[must_use]
pub fn exec_descriptor(program: BorrowedFd<'_>, name: &str) -> Errno {
    let arguments = CStrings::new(&[name.to_owned()]);
    let (arguments, environment) = (arguments.pointers(), [std::ptr::null::<libc::c_char>()]);
    // SAFETY: as in `exec`; the path is empty, which AT_EMPTY_PATH allows.
    let result = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    checked(result).err().unwrap_or(Errno::IO)
}

/// Sets the close-on-exec flag of every descriptor from `first` on (close_range(2), `CLOSE_RANGE_CLOEXEC`).
///
/// # Errors
/// The kernel is older than 5.11.
pub fn close_on_exec_from(first: u32) -> Result<()> {
    // SAFETY: no descriptor is closed here, only marked.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    checked(result).map(drop).on("close_range", first)
}

/// Resets every signal to its default action and unblocks all, as a new program expects. Rust's runtime ignores
/// SIGPIPE, and the keeper ignores more signals. Ignored signals stay ignored after exec (signal(7)).
pub fn default_signals() {
    for number in 1..=64 {
        // SAFETY: SIG_DFL is a valid action for every signal. For signals that cannot be changed the call returns
        // an error.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    // SAFETY: a set initialised by sigemptyset is valid, and the old mask is not requested.
    unsafe {
        let mut empty: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut empty);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const empty, std::ptr::null_mut());
    }
}

/// Ignores these signals.
pub fn ignore_signals(numbers: &[i32]) {
    for number in numbers {
        // SAFETY: SIG_IGN is a valid action. For signals that cannot be ignored the call returns an error.
        unsafe { libc::signal(*number, libc::SIG_IGN) };
    }
}

/// Returns a descriptor that is readable when a child has ended. SIGCHLD is blocked and delivered through it
/// (signalfd(2)).
///
/// # Errors
/// No descriptor is left.
pub fn child_signals() -> Result<OwnedFd> {
    // SAFETY: sigemptyset and sigaddset initialise the set before it is used, and the old mask is not requested.
    let fd = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    checked(fd.into()).on("signalfd", "")?;
    // SAFETY: the kernel has just opened this descriptor, and no other code owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
