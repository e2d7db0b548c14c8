//! The steps of a first process between its clone and its exec. They are numbered and execute a compiled plan
//! without parsing anything. All of them run in a child of the keeper, which has a single thread.
//!
//! The child stays in the keeper's PID namespace as long as it holds anything of the host. If it must run in a PID
//! namespace that has other processes (an exec, or a container that shares a PID namespace), it first joins all
//! other namespaces, sets its credentials and closes its descriptors. Only then does a clone of it continue in
//! that PID namespace ([`last`]).
//!
//! * [`restore`]: the steps before the restore of a checkpoint; [`runtime`]: the steps of a child that calls another OCI
//!   runtime
//! * [`container`]: the steps of a container; [`exec`]: of an exec; [`sandbox`]: of a pause
//! * [`mounts`]: root filesystem and volumes; [`devices`]: device nodes; [`masks`]: hidden paths; [`peers`]: checks whether mounts in volumes
//!   can propagate; [`users`]: ids of volumes
//! * [`process`]: the steps that a container and an exec have in common: streams, limits, credentials
//! * [`last`]: from the credentials to the exec; [`seccomp`]: the seccomp filter

pub mod container;
mod devices;
pub mod exec;
mod last;
mod masks;
mod mounts;
mod peers;
mod process;
pub mod restore;
pub mod runtime;
pub mod sandbox;
mod seccomp;
pub mod users;

pub use process::Streams;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::SocketFlags;

use crate::plan::{CgroupJoin, FdSlot};
use crate::sys::{self, process::exit_now};
use crate::wire::transport::Report;
use crate::wire::{InitFailure, Step};

/// The byte with which the keeper notifies a child in a new user namespace that its ids are mapped.
pub const MAPPED: u8 = b'c';

/// The byte with which the keeper lets a first process continue after the hooks of the host.
pub const HOOKED: u8 = b'h';

/// The byte with which a parent that ends passes a listening socket. The connection to it replaces the gate's socket.
pub const HANDOVER: u8 = b'l';

/// The byte with which the keeper lets a first process exec.
pub const START: u8 = b's';

/// The result of a step.
type StepResult<T> = Result<T, InitFailure>;

/// Adds to an error the step at which it happened, and the index of the step's object.
trait At<T> {
    fn at(self, step: Step) -> StepResult<T>;
    fn at_index(self, step: Step, index: usize) -> StepResult<T>;
}

impl<T> At<T> for sys::Result<T> {
    fn at(self, step: Step) -> StepResult<T> {
        self.map_err(|error| failure(step, None, &error))
    }

    fn at_index(self, step: Step, index: usize) -> StepResult<T> {
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
    /// Returns the descriptor of a slot.
    ///
    /// # Errors
    /// `EBADF` if the message did not contain it.
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
    /// Creates a gate from this socket.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// Returns the socket, for a child that does not use it as a gate.
    #[must_use]
    pub fn into_socket(self) -> OwnedFd {
        self.socket
    }

    /// Joins the cgroup, unless the clone has done so (v1).
    ///
    /// A thread that moves only itself, by `0` in `tasks`, does not wait. To move another thread, or a whole
    /// process by `cgroup.procs`, the kernel waits until every processor has noticed that no process may start or
    /// end in the meantime: 5 to 15 ms for the first such write in a while (kernel/cgroup/cgroup.c,
    /// `cgroup_procs_write_start`). This process has one thread.
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

    /// Waits for a byte of the keeper. If the socket ends, the keeper has given this process up or has ended: the
    /// process exits.
    fn wait_for(&self, expected: u8) {
        let mut packet = [0_u8; 1];
        loop {
            match rustix::io::read(&self.socket, &mut packet) {
                Ok(1) if packet == [expected] => return,
                Err(rustix::io::Errno::INTR) => {}
                _ => exit_now(1),
            }
        }
    }

    /// Waits for the permission to exec. The parent may first pass a listening socket: another process, which connects
    /// to it, then gives the permission.
    fn wait_for_start(&mut self) {
        loop {
            let mut packet = [0_u8; 1];
            match sys::socket::receive(self.socket.as_fd(), &mut packet) {
                Ok((1, _)) if packet == [START] => return,
                Ok((1, descriptors)) if packet == [HANDOVER] => {
                    let accept = |listener| rustix::net::accept_with(listener, SocketFlags::CLOEXEC);
                    let Some(Ok(connection)) = descriptors.first().map(accept) else { exit_now(1) };
                    self.socket = connection;
                }
                Err(error) if error.errno == rustix::io::Errno::INTR => {}
                _ => exit_now(1),
            }
        }
    }

    /// Leaves the socket open in the program that is executed.
    fn keep_over_exec(&self) -> sys::Result<()> {
        use sys::Context;
        rustix::io::fcntl_setfd(&self.socket, rustix::io::FdFlags::empty()).on("fcntl(F_SETFD)", "the gate")
    }

    fn report(&self, report: &Report, descriptor: Option<BorrowedFd<'_>>) {
        let descriptors: Vec<_> = descriptor.into_iter().collect();
        // If the keeper has ended, there is no process to report to.
        drop(sys::socket::send(self.socket.as_fd(), &report.encode(), &descriptors));
    }

    /// Returns the same end of the socket, for another thread.
    fn another(&self) -> sys::Result<Self> {
        use sys::Context;
        Ok(Self { socket: self.socket.try_clone().on("dup", "the gate")? })
    }

    /// Reports a failure with its whole detail, which is longer than a record.
    fn report_at_length(&self, failure: &InitFailure) {
        let text = sys::fs::sealed("failure", failure.detail.as_bytes(), false);
        self.report(&Report::Failed(failure.clone()), text.as_ref().ok().map(AsFd::as_fd));
    }

    /// Reports the failure and ends this process.
    fn fail(&self, failure: InitFailure) -> ! {
        self.report(&Report::Failed(failure), None);
        exit_now(1)
    }
}
