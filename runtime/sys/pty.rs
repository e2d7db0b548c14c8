//! Pseudo terminals, whose slave is opened through the master and never by a path that a container could have
//! redirected (CVE-2025-52565).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use super::{Context, Result, checked};

/// `TIOCGPTPEER` (ioctl_tty(2)): `_IO('T', 0x41)`.
const TIOCGPTPEER: libc::Ioctl = 0x5441;

/// A pseudo terminal of the devpts that is mounted at `devpts`: master and slave.
///
/// # Errors
/// It is no devpts, or there are too many terminals.
pub fn open(devpts: impl AsFd) -> Result<(OwnedFd, OwnedFd)> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let master = rustix::fs::openat(devpts, "ptmx", flags, Mode::empty()).on("open", "ptmx")?;
    rustix::pty::unlockpt(&master).on("unlockpt", "")?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the ioctl takes open flags by value and answers a new descriptor.
    let slave = unsafe { libc::ioctl(master.as_raw_fd(), TIOCGPTPEER, flags) };
    checked(slave.into()).on("ioctl(TIOCGPTPEER)", "")?;
    // SAFETY: the kernel has just opened this descriptor and nobody else knows it.
    let slave = unsafe { OwnedFd::from_raw_fd(slave) };
    Ok((master, slave))
}

/// Makes a terminal the controlling one of this session.
///
/// # Errors
/// This process leads no session, or the terminal is another's.
pub fn make_controlling(terminal: BorrowedFd<'_>) -> Result<()> {
    rustix::process::ioctl_tiocsctty(terminal).on("ioctl(TIOCSCTTY)", "")
}

/// Tells a terminal its size in characters; its foreground processes are told by SIGWINCH (ioctl_tty(2), `TIOCSWINSZ`).
///
/// # Errors
/// It is no terminal.
pub fn resize(terminal: BorrowedFd<'_>, width: u16, height: u16) -> Result<()> {
    let size = rustix::termios::Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(terminal, size).on("ioctl(TIOCSWINSZ)", format_args!("{width}x{height}"))
}
