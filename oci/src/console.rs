//! Terminals: sends the master to a console socket, as runc does.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use berth_runtime::sys::socket;

use crate::error::{Error, Result};

/// The name of the terminal that is sent with its master.
const NAME: &[u8] = b"/dev/ptmx";

/// Connects to a console socket and sends a terminal's master.
pub(crate) fn send(path: &Path, master: &OwnedFd) -> Result<()> {
    let socket = socket::connect_stream(path)?;
    rustix::io::ioctl_fionbio(&socket, false)
        .map_err(|errno| Error::Io { action: "use the console socket", source: errno.into() })?;
    Ok(socket::send(socket.as_fd(), NAME, &[master.as_fd()])?)
}

/// Checks that the flags fit: a terminal needs a receiver, and only a terminal has one.
pub(crate) fn check(terminal: bool, detached: bool, console_socket: Option<&Path>) -> Result<()> {
    let why = match (terminal, detached, console_socket) {
        (true, true, None) => "a terminal requires it",
        (false, _, Some(_)) => "the process has no terminal",
        _ => return Ok(()),
    };
    Err(Error::Invalid { field: "--console-socket", why: why.to_owned() })
}
