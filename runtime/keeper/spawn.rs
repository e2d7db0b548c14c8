//! Cloning a child into its cgroup, with a socket between it and the keeper.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berth_runtime::init::{Descriptors, Gate, MAPPED};
use berth_runtime::plan::{CgroupJoin, UserNamespace};
use berth_runtime::sys::namespaces::Namespaces;
use berth_runtime::sys::spawn::{Child, SingleThread, spawn as clone};
use berth_runtime::sys::{self, Context, process};
use rustix::fs::{CWD, Mode, OFlags};

/// A child on its way.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    /// The keeper's end of the socket.
    pub(crate) gate: OwnedFd,
    /// The child that was cloned first has ended; another goes on, where a container may have got hold of its socket.
    moved: bool,
}

impl Spawned {
    /// Another child of this process goes on: that happens once. What the child tells is true until it has moved.
    ///
    /// # Errors
    /// The process is no child of the keeper, or the child has moved before.
    pub(crate) fn moved(&mut self, pid: i32) -> sys::Result<()> {
        if self.moved {
            return Err(rustix::io::Errno::ALREADY).on("follow", format_args!("process {pid}"));
        }
        self.pidfd = process::child(pid)?;
        self.pid = pid;
        self.moved = true;
        Ok(())
    }
}

/// Where a child is to live.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    /// New namespaces.
    pub(crate) namespaces: Namespaces,
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
pub(crate) fn spawn(place: Place<'_>, run: impl FnOnce(Gate, SingleThread)) -> sys::Result<Spawned> {
    let cgroup = place.cgroup.directory.map(|slot| place.descriptors.get(slot)).transpose()?;
    let (child, gate) = clone(place.namespaces, cgroup, |socket, single| run(Gate::new(socket), single))?;
    let Child { pid, pidfd } = child;
    let ready = match place.userns {
        Some(userns) => map_ids(userns, place.oom_score_adj, pid).and_then(|()| let_go(gate.as_fd())),
        None => Ok(()),
    };
    let ready = ready.and_then(|()| rustix::io::ioctl_fionbio(&gate, true).on("ioctl(FIONBIO)", ""));
    if let Err(error) = ready {
        process::kill(pidfd.as_fd());
        return Err(error);
    }
    Ok(Spawned { pid, pidfd, gate, moved: false })
}

/// Only a process outside may map any ids (user_namespaces(7), "Defining user and group ID mappings").
fn map_ids(userns: &UserNamespace, oom_score_adj: Option<i32>, pid: i32) -> sys::Result<()> {
    let lines = UserNamespace::lines;
    let score = oom_score_adj.map(|score| ("oom_score_adj", score.to_string()));
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
