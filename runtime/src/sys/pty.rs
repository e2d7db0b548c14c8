//! Pseudo terminals. The slave is opened through the master and never by a path, which a container could redirect
//! (CVE-2025-52565).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use super::{Context, Result, checked};

/// `TIOCGPTPEER` (ioctl_tty(2)): `_IO('T', 0x41)`.
const TIOCGPTPEER: libc::Ioctl = 0x5441;

/// Opens a pseudo terminal in the devpts of the descriptor `devpts`. Returns master and slave.
///
/// # Errors
/// The descriptor is not a devpts, or there are too many terminals.
pub fn open(devpts: impl AsFd) -> Result<(OwnedFd, OwnedFd)> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let master = rustix::fs::openat(devpts, "ptmx", flags, Mode::empty()).on("open", "ptmx")?;
    rustix::pty::unlockpt(&master).on("unlockpt", "")?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the ioctl takes open flags by value and returns a new descriptor.
    let slave = unsafe { libc::ioctl(master.as_raw_fd(), TIOCGPTPEER, flags) };
    checked(slave.into()).on("ioctl(TIOCGPTPEER)", "")?;
    // SAFETY: the kernel has just opened this descriptor, and no other code owns it.
    let slave = unsafe { OwnedFd::from_raw_fd(slave) };
    Ok((master, slave))
}

/// Makes a terminal the controlling terminal of this session.
///
/// # Errors
/// This process is not a session leader, or the terminal belongs to another session.
pub fn make_controlling(terminal: BorrowedFd<'_>) -> Result<()> {
    rustix::process::ioctl_tiocsctty(terminal).on("ioctl(TIOCSCTTY)", "")
}

/// Sets a terminal's size in characters. The kernel sends SIGWINCH to its foreground processes (ioctl_tty(2),
/// `TIOCSWINSZ`).
///
/// # Errors
/// The descriptor is not a terminal.
pub fn resize(terminal: BorrowedFd<'_>, width: u16, height: u16) -> Result<()> {
    let size = rustix::termios::Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(terminal, size).on("ioctl(TIOCSWINSZ)", format_args!("{width}x{height}"))
}
