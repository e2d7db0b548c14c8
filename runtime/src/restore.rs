//! The restore of a checkpoint. The first process of the container prepares a place in a private mount namespace, and
//! executes a helper program there in the place of the container's command. The helper has CRIU restore the processes, and
//! reports the first of them, which takes the place of the helper.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::sys;
use crate::wire::InitFailure;
use crate::wire::transport::Report;

/// The folder in which the place is. CRIU creates temporary folders in it. It is in memory and only this mount namespace has
/// it; all mounts of the host are read-only there.
pub const PLACE: &str = "/tmp";
/// The root filesystem of the container.
pub const ROOT: &str = "/tmp/root";
/// The folder of `RestorePlan::folder`.
pub const WORK: &str = "/tmp/work";
/// The helper program.
pub const PROGRAM: &str = "/tmp/berth";
/// The name of the helper's command.
pub const COMMAND: &str = "checkpoint-restore";
/// The folder with the mounts of the plan that come from outside of the container, by their index in the plan.
pub const MOUNTS: &str = "/tmp/mounts";
/// The socket through which the helper and the check of the restored processes communicate.
pub const SOCKET: &str = "/tmp/check.sock";
/// The folder with the file and the folder that hide paths.
pub const MASKS: &str = "/tmp/masks";

/// The socket to the keeper in the helper program.
#[derive(Debug)]
pub struct RestoreGate {
    socket: OwnedFd,
}

impl RestoreGate {
    /// Opens the socket that this program was started with.
    ///
    /// # Errors
    /// There is no such descriptor.
    pub fn inherited() -> sys::Result<Self> {
        Ok(Self { socket: sys::spawn::inherited_gate()? })
    }

    /// The gate with this socket.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// Reports the first restored process, before it runs.
    ///
    /// # Errors
    /// The keeper has ended.
    pub fn restored(&self, pid: i32) -> sys::Result<()> {
        self.report(&Report::Restored { pid })
    }

    /// Reports that the restore has failed.
    ///
    /// # Errors
    /// The keeper has ended.
    pub fn failed(&self, failure: InitFailure) -> sys::Result<()> {
        self.report(&Report::Failed(failure))
    }

    fn report(&self, report: &Report) -> sys::Result<()> {
        sys::socket::send(self.socket.as_fd(), &report.encode(), &[])
    }
}

impl AsFd for RestoreGate {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
