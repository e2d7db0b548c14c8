//! Cloning a child into its cgroup, with a socket between it and the keeper.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berth_runtime::init::{Descriptors, Gate, MAPPED};
use berth_runtime::plan::{CgroupJoin, UserNamespace};
use berth_runtime::sys::namespaces::Namespaces;
use berth_runtime::sys::process::{self, Ended};
use berth_runtime::sys::spawn::{Child, SingleThread, spawn as clone};
use berth_runtime::sys::{self, Context};
use rustix::fs::{CWD, Mode, OFlags};

/// A child on its way.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    /// The keeper's end of the socket.
    pub(crate) gate: OwnedFd,
    /// Another child is to go on in its place.
    moves: bool,
    /// How it has ended, while the socket is still open: the child that goes on has not told so yet, or the one that it
    /// came from has not ended yet.
    ended: Option<Ended>,
}

impl Spawned {
    /// Another child of the keeper goes on: that happens once, since others may get hold of the socket after it.
    ///
    /// # Errors
    /// The process is no child of the keeper, or the child has moved before.
    pub(crate) fn moved(&mut self, sender: Option<i32>) -> sys::Result<()> {
        let pid = sender.filter(|_| self.moves).ok_or(rustix::io::Errno::ALREADY).on("follow", "a child")?;
        self.pidfd = process::child(pid)?;
        self.pid = pid;
        self.moves = false;
        self.ended = None;
        sys::socket::tell_senders(self.gate.as_fd(), false)
    }

    /// The child that was cloned first has not gone on as another.
    pub(crate) fn is_to_move(&self) -> bool {
        self.moves
    }

    /// Whether this is the child. The pid of one that was reaped may be another's.
    pub(crate) fn is(&self, pid: i32) -> bool {
        self.pid == pid && self.ended.is_none()
    }

    /// Keeps how the child has ended until the socket is closed.
    pub(crate) fn keep_end(&mut self, ended: Ended) {
        self.ended = Some(ended);
    }

    /// How the child has ended, where that was kept.
    pub(crate) fn take_end(&mut self) -> Option<Ended> {
        self.ended.take()
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
    /// Another child goes on in its place (`Report::Moved`).
    pub(crate) moves: bool,
    /// What the slots mean.
    pub(crate) descriptors: Descriptors<'a>,
}

/// Clones a child that calls `run` with its end of the socket.
///
/// # Errors
/// A system call failed; there is no child then.
pub(crate) fn spawn(place: Place<'_>, run: impl FnOnce(Gate, SingleThread)) -> sys::Result<Spawned> {
    let cgroup = place.cgroup.directory.map(|slot| place.descriptors.get(slot)).transpose()?;
    let pair = sys::socket::pair()?;
    if place.moves {
        // What is sent before this has no sender.
        sys::socket::tell_senders(pair.0.as_fd(), true)?;
    }
    let (child, gate) =
        clone(place.namespaces, cgroup, pair, |socket, single| run(Gate::new(socket), single))?;
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
    Ok(Spawned { pid, pidfd, gate, moves: place.moves, ended: None })
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
