//! An exec: a further process in a container. Its output goes directly to the daemon, not through the keeper.

use std::os::fd::{AsFd, OwnedFd};

use berth_runtime::init::{Descriptors, Streams, exec};
use berth_runtime::plan::{ExecPlan, FdSlot, SeccompListener};
use berth_runtime::procfs::Proc;
use berth_runtime::sys::{self, namespaces::Namespaces};

use crate::container::Container;
use crate::keeper::Origin;
use crate::spawn::{SpawnOptions, Spawned, spawn};

/// An exec.
#[derive(Debug)]
pub(crate) struct Exec {
    pub(crate) child: Spawned,
    /// The call that waits for the start.
    pub(crate) starting: Option<Origin>,
    /// Whether the report with the terminal is still expected.
    tty: bool,
    /// The terminal's master, until it is sent with the answer.
    pub(crate) master: Option<OwnedFd>,
    /// The id of its container.
    pub(crate) container: String,
    /// The supervisor of its system calls, if its filter has one.
    pub(crate) supervisor: Option<SeccompListener>,
}

impl Exec {
    /// Clones the process.
    pub(crate) fn start(
        plan: &ExecPlan,
        id: &str,
        container: &Container,
        descriptors: Descriptors<'_>,
        proc: &Proc,
        origin: Origin,
    ) -> sys::Result<Self> {
        let options = SpawnOptions {
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
        let child = spawn(options, |gate, single| {
            exec::run(exec::ExecStart { plan, descriptors, init, keyring, proc, streams, gate, single })
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

    /// Stores the terminal's master. Only the first one is accepted: other processes may get access to the socket
    /// of a child that has moved.
    pub(crate) fn set_terminal(&mut self, master: OwnedFd) {
        if self.tty {
            self.tty = false;
            self.master = Some(master);
        }
    }
}
