//! A further process in a container. Its output goes to whoever asked for it, not through the keeper.

use std::os::fd::{AsFd, OwnedFd};

use berth_runtime::init::{Descriptors, Streams, exec};
use berth_runtime::plan::{ExecPlan, FdSlot, SeccompListener};
use berth_runtime::procfs::Proc;
use berth_runtime::sys::{self, namespaces::Namespaces};

use crate::container::Container;
use crate::keeper::Origin;
use crate::spawn::{Place, Spawned, spawn};

/// A further process.
#[derive(Debug)]
pub(crate) struct Exec {
    pub(crate) child: Spawned,
    /// Who waits for the start.
    pub(crate) starting: Option<Origin>,
    /// A terminal is expected.
    tty: bool,
    /// The terminal's master, until it is sent with the answer.
    pub(crate) master: Option<OwnedFd>,
    /// The container it is in.
    pub(crate) container: String,
    /// Who answers for its system calls, where its filter hands some over.
    pub(crate) supervisor: Option<SeccompListener>,
}

impl Exec {
    /// Clones it.
    pub(crate) fn start(
        plan: &ExecPlan,
        id: &str,
        container: &Container,
        descriptors: Descriptors<'_>,
        proc: &Proc,
        origin: Origin,
    ) -> sys::Result<Self> {
        let place = Place {
            namespaces: Namespaces::NONE,
            cgroup: &plan.cgroup,
            userns: None,
            oom_score_adj: None,
            moves: true,
            descriptors,
        };
        let stream = |slot: Option<FdSlot>| slot.map(|slot| descriptors.get(slot)).transpose();
        let streams = Streams {
            stdin: stream(plan.stdin)?,
            stdout: stream(plan.stdout)?,
            stderr: stream(plan.stderr)?,
        };
        let (init, keyring) = (container.child.pidfd.as_fd(), &container.keyring);
        let child = spawn(place, |gate, single| {
            exec::run(exec::Start { plan, descriptors, init, keyring, proc, streams, gate, single })
        })?;
        Ok(Self {
            child,
            starting: Some(origin),
            tty: plan.tty,
            master: None,
            container: id.to_owned(),
            supervisor: plan.process.seccomp.as_ref().and_then(|seccomp| seccomp.listener.clone()),
        })
    }
    /// The terminal's master has come. Others may get hold of the socket of a child that has moved: what comes after the
    /// first is not from the child.
    pub(crate) fn take_terminal(&mut self, master: OwnedFd) {
        if self.tty {
            self.tty = false;
            self.master = Some(master);
        }
    }
}
