//! What a first process does between its clone and its exec: numbered steps over a compiled plan, without parsing
//! anything. All of it runs in a child of the keeper, which has a single thread.
//!
//! The child stays in the keeper's PID namespace while anything of the host is left in it. Where it is to live among the
//! processes of others (a further process, a container that shares a PID namespace), it first joins all other namespaces,
//! becomes the user, and closes its descriptors. Only then does a clone of it go on in the PID namespace ([`last`]).
//!
//! * [`container`]: the steps of a container; [`exec`]: of a further process; [`sandbox`]: of a pause
//! * [`mounts`]: root filesystem and volumes; [`masks`]: hidden paths; [`peers`]: whether volumes can propagate;
//!   [`users`]: ids of volumes
//! * [`process`]: what container and exec have in common: streams, limits, credentials
//! * [`hooks`]: programs of the host that change a container's root filesystem
//! * [`last`]: from the credentials to the exec; [`seccomp`]: the filter of system calls

pub mod container;
pub mod exec;
mod hooks;
mod last;
mod masks;
mod mounts;
mod peers;
mod process;
pub mod sandbox;
mod seccomp;
mod users;

pub use process::Streams;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::plan::{CgroupJoin, FdSlot};
use crate::sys::{self, process::exit_now};
use crate::wire::transport::Report;
use crate::wire::{InitFailure, Step};

/// The byte by which the keeper tells its child that its ids are mapped, where it has a user namespace of its own.
pub const MAPPED: u8 = b'c';

/// The byte by which the keeper lets a first process exec.
pub const START: u8 = b's';

/// The result of a step.
type Done<T> = Result<T, InitFailure>;

/// Says at which step, and at which of its objects, a call failed.
trait At<T> {
    fn at(self, step: Step) -> Done<T>;
    fn at_index(self, step: Step, index: usize) -> Done<T>;
}

impl<T> At<T> for sys::Result<T> {
    fn at(self, step: Step) -> Done<T> {
        self.map_err(|error| failure(step, None, &error))
    }

    fn at_index(self, step: Step, index: usize) -> Done<T> {
        self.map_err(|error| failure(step, u32::try_from(index).ok(), &error))
    }
}

fn failure(step: Step, index: Option<u32>, error: &sys::Error) -> InitFailure {
    let detail = format!("{} {}", error.call, error.object).trim_end().to_owned();
    InitFailure { step, errno: error.raw(), index, detail }
}

/// The descriptors that came with a plan.
#[derive(Clone, Copy, Debug)]
pub struct Descriptors<'a>(pub &'a [OwnedFd]);

impl<'a> Descriptors<'a> {
    /// The descriptor of a slot.
    ///
    /// # Errors
    /// `EBADF` where the message did not bring it.
    pub fn get(self, slot: FdSlot) -> sys::Result<BorrowedFd<'a>> {
        use sys::Context;
        let index = usize::try_from(slot.0).unwrap_or(usize::MAX);
        self.0.get(index).map(AsFd::as_fd).ok_or(rustix::io::Errno::BADF).on("descriptor", slot.0)
    }
}

/// The child's end of the socket between it and the keeper.
#[derive(Debug)]
pub struct Gate {
    socket: OwnedFd,
}

impl Gate {
    /// Over this socket.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// Returns the socket, for a child that does not use it as a gate.
    #[must_use]
    pub fn into_socket(self) -> OwnedFd {
        self.socket
    }

    /// Joins the cgroup, where the clone has not (v1).
    ///
    /// A thread that moves itself alone, by `0` in `tasks`, waits for nobody. Whoever moves another, or a whole process by
    /// `cgroup.procs`, waits until every processor has seen that no process may start or end meanwhile: 5 to 15 ms for the
    /// first in a while (kernel/cgroup/cgroup.c, `cgroup_procs_write_start`). This process has one thread.
    fn enter(&self, cgroup: &CgroupJoin, descriptors: Descriptors<'_>) {
        use sys::Context;
        for slot in &cgroup.tasks {
            let joined =
                descriptors.get(*slot).and_then(|tasks| rustix::io::write(tasks, b"0").on("write", "tasks"));
            if let Err(error) = joined {
                self.fail(failure(Step::Cgroup, None, &error));
            }
        }
    }

    /// Waits for a byte of the keeper. The end of the socket means that the keeper gives this process up, or is gone:
    /// there is nothing to go on for.
    fn wait_for(&self, wanted: u8) {
        let mut packet = [0_u8; 1];
        loop {
            match rustix::io::read(&self.socket, &mut packet) {
                Ok(1) if packet == [wanted] => return,
                Err(rustix::io::Errno::INTR) => {}
                _ => exit_now(1),
            }
        }
    }

    fn report(&self, report: &Report, descriptor: Option<BorrowedFd<'_>>) {
        let descriptors: Vec<_> = descriptor.into_iter().collect();
        // A keeper that is gone cannot be told anything.
        drop(sys::socket::send(self.socket.as_fd(), &report.encode(), &descriptors));
    }

    /// The same end of the socket, for another thread.
    fn another(&self) -> sys::Result<Self> {
        use sys::Context;
        Ok(Self { socket: self.socket.try_clone().on("dup", "the gate")? })
    }

    /// Tells the failure and ends this process.
    fn fail(&self, failure: InitFailure) -> ! {
        self.report(&Report::Failed(failure), None);
        exit_now(1)
    }
}
