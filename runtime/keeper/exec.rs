//! A further process in a container. Its output goes to whoever asked for it, not through the keeper.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berth_runtime::init::{Descriptors, Streams, exec};
use berth_runtime::plan::{ExecPlan, FdSlot, SeccompListener};
use berth_runtime::sys;

use crate::keeper::Origin;
use crate::spawn::{Place, Spawned, spawn};

/// A further process.
#[derive(Debug)]
pub(crate) struct Exec {
    pub(crate) child: Spawned,
    /// Who waits for the start.
    pub(crate) starting: Option<Origin>,
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
        container: &str,
        descriptors: Descriptors<'_>,
        init: BorrowedFd<'_>,
        null: &OwnedFd,
        own_pids: &OwnedFd,
        origin: Origin,
    ) -> sys::Result<Self> {
        let place = Place {
            namespaces: 0,
            pids_of: Some(init),
            own_pids: own_pids.as_fd(),
            cgroup: &plan.cgroup,
            userns: None,
            oom_score_adj: None,
            descriptors,
        };
        let stream = |slot: Option<FdSlot>| match slot {
            Some(slot) => descriptors.get(slot),
            None => Ok(null.as_fd()),
        };
        let streams = Streams {
            stdin: stream(plan.stdin)?,
            stdout: stream(plan.stdout)?,
            stderr: stream(plan.stderr)?,
        };
        let child = spawn(place, |gate| exec::run(exec::Start { plan, descriptors, init, streams, gate }))?;
        Ok(Self {
            child,
            starting: Some(origin),
            master: None,
            container: container.to_owned(),
            supervisor: plan.process.seccomp.as_ref().and_then(|seccomp| seccomp.listener.clone()),
        })
    }
}
