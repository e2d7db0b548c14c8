//! Clones a child into its cgroup, with a socket between it and the keeper.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berth_runtime::init::{Descriptors, Gate, MAPPED};
use berth_runtime::plan::{CgroupJoin, UserNamespace};
use berth_runtime::sys::namespaces::Namespaces;
use berth_runtime::sys::process::{self, Ended};
use berth_runtime::sys::spawn::{Child, SingleThread, spawn as clone};
use berth_runtime::sys::{self, Context};
use berth_runtime::wire::Failure;
use rustix::fs::{CWD, Mode, OFlags};

use crate::failure::system;
use crate::orphans::Orphans;

/// A cloned child.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    /// The keeper's end of the socket.
    pub(crate) gate: OwnedFd,
    /// Whether another child will continue in its place.
    moves: bool,
    /// How it ended, while the socket is still open: the report of the child that continues has not been read yet,
    /// or the process that still holds the socket has not ended yet.
    ended: Option<Ended>,
}

impl Spawned {
    /// Switches to another child of the keeper that continues. This happens only once, because other processes may
    /// get access to the socket afterwards.
    ///
    /// # Errors
    /// The process is not a child of the keeper, or the child has moved before.
    pub(crate) fn moved(&mut self, sender: Option<i32>) -> sys::Result<()> {
        let pid = sender.filter(|_| self.moves).ok_or(rustix::io::Errno::ALREADY).on("follow", "a child")?;
        self.pidfd = process::child(pid)?;
        self.pid = pid;
        self.moves = false;
        self.ended = None;
        sys::socket::report_senders(self.gate.as_fd(), false)
    }

    /// Switches to a process that becomes a child of the keeper when its parent ends: the first one of a restored checkpoint.
    /// The pid is reported by its parent, which keeps the process until then.
    ///
    /// # Errors
    /// The process does not exist.
    pub(crate) fn follow(&mut self, pid: i32) -> sys::Result<()> {
        self.pidfd = process::open(pid)?;
        self.pid = pid;
        self.ended = None;
        Ok(())
    }

    /// Switches to a process that was a child of the child, and is now one of the keeper.
    ///
    /// # Errors
    /// The process is not a child of the keeper, and was none.
    pub(crate) fn adopt(&mut self, pid: i32, orphans: &mut Orphans) -> sys::Result<()> {
        match process::child(pid) {
            Ok(pidfd) => {
                self.pidfd = pidfd;
                self.ended = None;
            }
            Err(error) => self.ended = Some(orphans.take(pid).ok_or(error)?),
        }
        self.pid = pid;
        Ok(())
    }

    /// Returns whether the end of the child is stored.
    pub(crate) fn has_exit(&self) -> bool {
        self.ended.is_some()
    }

    /// Returns whether the switch to another child is still expected.
    pub(crate) fn awaits_move(&self) -> bool {
        self.moves
    }

    /// Returns whether this is the child's pid. After the child is reaped, another process may have its pid.
    pub(crate) fn is(&self, pid: i32) -> bool {
        self.pid == pid && self.ended.is_none()
    }

    /// Stores how the child ended until the socket is closed.
    pub(crate) fn store_exit(&mut self, ended: Ended) {
        self.ended = Some(ended);
    }

    /// Takes the stored end of the child.
    pub(crate) fn take_exit(&mut self) -> Option<Ended> {
        self.ended.take()
    }
}

/// The options of a child.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SpawnOptions<'a> {
    /// The new namespaces.
    pub(crate) namespaces: Namespaces,
    /// Its cgroup.
    pub(crate) cgroup: &'a CgroupJoin,
    /// The ids of the new user namespace, if there is one.
    pub(crate) userns: Option<&'a UserNamespace>,
    /// The OOM score that the keeper sets for a child in a new user namespace, which may not set it itself.
    pub(crate) oom_score_adj: Option<i32>,
    /// Whether another child will continue in its place (`Report::Moved`).
    pub(crate) moves: bool,
    /// The descriptors that slots refer to.
    pub(crate) descriptors: Descriptors<'a>,
}

/// Clones a child that calls `run` with its end of the socket.
///
/// # Errors
/// A system call failed. Then there is no child.
pub(crate) fn spawn(options: SpawnOptions<'_>, run: impl FnOnce(Gate, SingleThread)) -> sys::Result<Spawned> {
    let cgroup = options.cgroup.directory.map(|slot| options.descriptors.get(slot)).transpose()?;
    let pair = sys::socket::pair()?;
    if options.moves {
        // Packets that are sent before this have no sender.
        sys::socket::report_senders(pair.0.as_fd(), true)?;
    }
    let (child, gate) =
        clone(options.namespaces, cgroup, pair, |socket, single| run(Gate::new(socket), single))?;
    let Child { pid, pidfd } = child;
    let ready = match options.userns {
        Some(userns) => map_ids(userns, options.oom_score_adj, pid).and_then(|()| release(gate.as_fd())),
        None => Ok(()),
    };
    let ready = ready.and_then(|()| rustix::io::ioctl_fionbio(&gate, true).on("ioctl(FIONBIO)", ""));
    if let Err(error) = ready {
        process::kill(pidfd.as_fd());
        return Err(error);
    }
    Ok(Spawned { pid, pidfd, gate, moves: options.moves, ended: None })
}

/// Maps the ids. Only a process outside of the namespace may map arbitrary ids (user_namespaces(7), "Defining user
/// and group ID mappings").
fn map_ids(userns: &UserNamespace, oom_score_adj: Option<i32>, pid: i32) -> sys::Result<()> {
    let lines = UserNamespace::lines;
    let score = oom_score_adj.map(|score| ("oom_score_adj", score.to_string()));
    let files = [("uid_map", lines(&userns.uids)), ("gid_map", lines(&userns.gids))];
    for (name, text) in files.into_iter().chain(score) {
        let path = format!("/proc/{pid}/{name}");
        let file = rustix::fs::openat(CWD, &path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
        // These files require a single write(2).
        file.and_then(|file| rustix::io::write(&file, text.as_bytes()))
            .on("write", format_args!("{path} {:?}", text.trim_end()))?;
    }
    Ok(())
}

fn release(gate: BorrowedFd<'_>) -> sys::Result<()> {
    rustix::io::write(gate, &[MAPPED]).map(drop).on("write", "the first process")
}

/// Kills a child that cannot be watched.
pub(crate) fn kill_unwatched(child: &Spawned, error: &sys::Error) -> Failure {
    process::kill(child.pidfd.as_fd());
    system(error)
}
