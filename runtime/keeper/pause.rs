//! The pod's pause: the process that holds its namespaces.

use std::os::fd::{AsFd, OwnedFd};

use berth_runtime::init::{Descriptors, sandbox};
use berth_runtime::plan::{NamespaceSource, SandboxPlan};
use berth_runtime::sys::{self, Context};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::keeper::Origin;
use crate::spawn::{Place, Spawned, spawn};

/// The pause, on its way or running.
#[derive(Debug)]
pub(crate) struct Pause {
    pub(crate) child: Spawned,
    /// Open as soon as the pause runs: it outlives a pause that dies, until the pod is stopped. None of a pause that ended
    /// before: then it has told why.
    pub(crate) netns: Option<OwnedFd>,
    /// The pod's containers share the pause's process namespace.
    pub(crate) shares_pids: bool,
    /// Who waits for the start.
    pub(crate) starting: Option<Origin>,
}

impl Pause {
    /// Clones the pause.
    pub(crate) fn start(
        plan: &SandboxPlan,
        descriptors: Descriptors<'_>,
        program: &OwnedFd,
        null: &OwnedFd,
        own_pids: &OwnedFd,
        origin: Origin,
    ) -> sys::Result<Self> {
        let place = Place {
            namespaces: sandbox::namespaces(plan),
            pids_of: None,
            own_pids: own_pids.as_fd(),
            cgroup: &plan.cgroup,
            descriptors,
        };
        let child = spawn(place, |gate| {
            sandbox::run(sandbox::Start { plan, program: program.as_fd(), null: null.as_fd(), gate })
        })?;
        let path = format!("/proc/{}/ns/net", child.pid);
        // The child cannot be reaped before this returns: its pid is its own.
        let netns = match rustix::fs::openat(CWD, &path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            // Of a process that has ended /proc has no namespaces any more.
            Err(Errno::NOENT | Errno::SRCH) => None,
            opened => Some(opened.on("open", &path)?),
        };
        let shares_pids = plan.pid == NamespaceSource::New;
        Ok(Self { child, netns, shares_pids, starting: Some(origin) })
    }
}
