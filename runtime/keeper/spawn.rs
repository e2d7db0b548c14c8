//! Cloning a child: into its process namespace and its cgroup, with a socket between it and the keeper.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berth_runtime::init::{Descriptors, Gate, IN_CGROUP};
use berth_runtime::plan::CgroupJoin;
use berth_runtime::sys::process::{self, Child, clone_child, namespace};
use berth_runtime::sys::{self, Context};

/// A child on its way.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    /// The keeper's end of the socket.
    pub(crate) gate: OwnedFd,
}

/// Where a child is to live.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    /// New namespaces (`namespace::*`).
    pub(crate) namespaces: u64,
    /// A process whose process namespace is taken.
    pub(crate) pids_of: Option<BorrowedFd<'a>>,
    /// The keeper's own process namespace.
    pub(crate) own_pids: BorrowedFd<'a>,
    /// Its cgroup.
    pub(crate) cgroup: &'a CgroupJoin,
    /// What the slots mean.
    pub(crate) descriptors: Descriptors<'a>,
}

/// Clones a child that calls `run` with its end of the socket.
///
/// # Errors
/// A system call failed; there is no child then.
pub(crate) fn spawn(place: Place<'_>, run: impl FnOnce(Gate)) -> sys::Result<Spawned> {
    let (ours, theirs) = sys::socket::pair()?;
    let cgroup = place.cgroup.directory.map(|slot| place.descriptors.get(slot)).transpose()?;
    if let Some(process) = place.pids_of {
        // Only children that are cloned from now on are in it (setns(2), CLONE_NEWPID).
        process::join_namespaces_of(process, namespace::PID)?;
    }
    // In the child the keeper's end must not stay open: its end is how the keeper notices that the child is gone.
    let keepers_end = ours.as_fd();
    let child = clone_child(place.namespaces, cgroup, || {
        let _closed = sys::process::close(keepers_end);
        run(Gate::new(theirs));
    });
    if place.pids_of.is_some() {
        process::join_namespace(place.own_pids, namespace::PID)?;
    }
    let Child { pid, pidfd } = child?;
    if let Err(error) = join_cgroup(&place, pid, ours.as_fd()) {
        process::kill(pidfd.as_fd());
        return Err(error);
    }
    rustix::io::ioctl_fionbio(&ours, true).on("ioctl(FIONBIO)", "")?;
    Ok(Spawned { pid, pidfd, gate: ours })
}

/// On v1 the keeper puts the child into its cgroups while the child waits; on v2 it was cloned into its own.
fn join_cgroup(place: &Place<'_>, pid: i32, gate: BorrowedFd<'_>) -> sys::Result<()> {
    for slot in &place.cgroup.procs {
        let procs = place.descriptors.get(*slot)?;
        rustix::io::write(procs, pid.to_string().as_bytes()).on("write", "cgroup.procs")?;
    }
    rustix::io::write(gate, &[IN_CGROUP]).map(drop).on("write", "the first process")
}
