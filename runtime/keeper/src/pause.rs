//! The pod's pause: the process that holds its namespaces.

use std::os::fd::{AsFd, OwnedFd};

use berth_runtime::init::{Descriptors, sandbox};
use berth_runtime::plan::{NamespaceSource, SandboxPlan};
use berth_runtime::procfs::Proc;
use berth_runtime::sys::{self, Context};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::keeper::Origin;
use crate::spawn::{SpawnOptions, Spawned, spawn};

/// The pause, starting or running.
#[derive(Debug)]
pub(crate) struct Pause {
    pub(crate) child: Spawned,
    /// Open as soon as the pause runs. It exists until the pod is stopped, also if the pause dies. `None` if the
    /// pause ended before: it has then reported why.
    pub(crate) netns: Option<OwnedFd>,
    /// The user namespace that owns all others of the pod, if it has one.
    pub(crate) userns: Option<OwnedFd>,
    /// Whether the pod's containers share the pause's process namespace.
    pub(crate) shares_pids: bool,
    /// The call that waits for the start.
    pub(crate) starting: Option<Origin>,
}

impl Pause {
    /// Clones the pause.
    pub(crate) fn start(
        plan: &SandboxPlan,
        descriptors: Descriptors<'_>,
        program: &OwnedFd,
        null: &OwnedFd,
        proc: &Proc,
        origin: Origin,
    ) -> sys::Result<Self> {
        let options = SpawnOptions {
            namespaces: sandbox::namespaces_of(plan),
            cgroup: &plan.cgroup,
            userns: plan.userns.as_ref(),
            oom_score_adj: plan.oom_score_adj,
            moves: false,
            descriptors,
        };
        let child = spawn(options, |gate, single| {
            sandbox::run(sandbox::SandboxStart {
                plan,
                program: program.as_fd(),
                null: null.as_fd(),
                proc,
                descriptors,
                gate,
                single,
            })
        })?;
        let netns = namespace_of(&child, "net")?;
        let userns = match plan.userns {
            Some(_) => namespace_of(&child, "user")?,
            None => None,
        };
        let shares_pids = plan.pid == NamespaceSource::New;
        Ok(Self { child, netns, userns, shares_pids, starting: Some(origin) })
    }
}

/// Opens a namespace of the child. The child cannot be reaped before this, so its pid cannot be reused. If it has
/// ended, /proc has no namespaces of it.
fn namespace_of(child: &Spawned, kind: &str) -> sys::Result<Option<OwnedFd>> {
    let path = format!("/proc/{}/ns/{kind}", child.pid);
    match rustix::fs::openat(CWD, &path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT | Errno::SRCH) => Ok(None),
        opened => opened.on("open", &path).map(Some),
    }
}
