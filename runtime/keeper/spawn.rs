//! Cloning a child: into its process namespace and its cgroup, with a socket between it and the keeper.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berth_runtime::init::{Descriptors, Gate, MAPPED};
use berth_runtime::plan::{CgroupJoin, UserNamespace};
use berth_runtime::sys::process::{self, Child, clone_child, namespace};
use berth_runtime::sys::{self, Context};
use rustix::fs::{CWD, Mode, OFlags};

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
    /// The ids of the user namespace that is among the new ones.
    pub(crate) userns: Option<&'a UserNamespace>,
    /// Set from outside for a child in a new user namespace, which could not.
    pub(crate) oom_score_adj: Option<i32>,
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
    if let Err(error) = map_ids(&place, pid).and_then(|()| let_go(ours.as_fd())) {
        process::kill(pidfd.as_fd());
        return Err(error);
    }
    rustix::io::ioctl_fionbio(&ours, true).on("ioctl(FIONBIO)", "")?;
    Ok(Spawned { pid, pidfd, gate: ours })
}

/// Only a process outside may map any ids (user_namespaces(7), "Defining user and group ID mappings").
fn map_ids(place: &Place<'_>, pid: i32) -> sys::Result<()> {
    let Some(userns) = place.userns else { return Ok(()) };
    let lines = UserNamespace::lines;
    let score = place.oom_score_adj.map(|score| ("oom_score_adj", score.to_string()));
    let files = [("uid_map", lines(&userns.uids)), ("gid_map", lines(&userns.gids))];
    for (name, text) in files.into_iter().chain(score) {
        let path = format!("/proc/{pid}/{name}");
        let file = rustix::fs::openat(CWD, &path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
        // In one call, as these files want it.
        file.and_then(|file| rustix::io::write(&file, text.as_bytes()))
            .on("write", format_args!("{path} {:?}", text.trim_end()))?;
    }
    Ok(())
}

fn let_go(gate: BorrowedFd<'_>) -> sys::Result<()> {
    rustix::io::write(gate, &[MAPPED]).map(drop).on("write", "the first process")
}
