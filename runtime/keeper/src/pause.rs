//! The pod's pause: the process that holds its namespaces.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berth_runtime::init::{Descriptors, sandbox};
use berth_runtime::keeper_step::KeeperStep;
use berth_runtime::plan::{NamespaceSource, SandboxPlan};
use berth_runtime::procfs::Proc;
use berth_runtime::sys::process::{self, Ended};
use berth_runtime::sys::{self, Context};
use berth_runtime::wire::{Failure, Outcome};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::failure::{Origin, state, system, vanished};
use crate::gate::{GateEvent, failure_of, read_gate};
use crate::services::Services;
use crate::spawn::{SpawnOptions, Spawned, kill_unwatched, spawn};
use crate::watch::EventSource;

/// The program of the pause, and its standard streams.
#[derive(Debug)]
pub(crate) struct PauseProgram {
    pub(crate) program: OwnedFd,
    pub(crate) null: OwnedFd,
}

/// The pause, starting or running.
#[derive(Debug)]
pub(crate) struct Pause {
    child: Spawned,
    /// Open as soon as the pause runs. It exists until the pod is stopped, also if the pause dies. `None` if the
    /// pause ended before: it has then reported why.
    netns: Option<OwnedFd>,
    /// The user namespace that owns all others of the pod, if it has one.
    userns: Option<OwnedFd>,
    /// Whether the pod's containers share the pause's process namespace.
    shares_pids: bool,
    /// The call that waits for the start.
    starting: Option<Origin>,
}

impl Pause {
    /// Starts the pause. The call is answered when it has reached its program, or has failed.
    pub(crate) fn start(
        plan: &SandboxPlan,
        descriptors: &[OwnedFd],
        program: &PauseProgram,
        origin: Origin,
        services: &mut Services,
    ) -> Result<Self, Failure> {
        let pause = Self::spawn(plan, Descriptors(descriptors), program, &services.proc, origin);
        let pause = pause.map_err(|error| system(&error))?;
        let watched = services.watch.add(pause.child.gate.as_fd(), EventSource::PauseGate);
        watched.map_err(|error| kill_unwatched(&pause.child, &error))?;
        Ok(pause)
    }

    fn spawn(
        plan: &SandboxPlan,
        descriptors: Descriptors<'_>,
        program: &PauseProgram,
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
                program: program.program.as_fd(),
                null: program.null.as_fd(),
                proc,
                descriptors,
                gate,
                single,
            })
        })?;
        KeeperStep::PauseCloned.reach();
        let netns = namespace_of(&child, "net")?;
        let userns = match plan.userns {
            Some(_) => namespace_of(&child, "user")?,
            None => None,
        };
        let shares_pids = plan.pid == NamespaceSource::New;
        Ok(Self { child, netns, userns, shares_pids, starting: Some(origin) })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.pid
    }

    /// Whether this is the pid of the pause.
    pub(crate) fn is_child(&self, pid: i32) -> bool {
        self.child.is(pid)
    }

    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.child.pidfd.as_fd()
    }

    /// The user namespace that owns all others of the pod, if it has one.
    pub(crate) fn userns(&self) -> Option<BorrowedFd<'_>> {
        self.userns.as_ref().map(AsFd::as_fd)
    }

    /// Whether the pod's containers share the pause's process namespace.
    pub(crate) fn shares_pids(&self) -> bool {
        self.shares_pids
    }

    pub(crate) fn kill(&self) {
        process::kill(self.pidfd());
    }

    /// Handles the report of the pause.
    pub(crate) fn on_gate(&mut self, services: &mut Services) {
        let Some(event) = read_gate(self.child.gate.as_fd()) else { return };
        services.watch.remove(self.child.gate.as_fd(), &EventSource::PauseGate);
        let Some(origin) = self.starting.take() else { return };
        match event {
            GateEvent::End => {
                KeeperStep::PauseRuns.reach();
                self.answer_namespaces(origin, services);
            }
            GateEvent::Report(report, _) => services.answer(origin, Err(failure_of(report))),
            GateEvent::Moved(_) => services.answer(origin, Err(vanished())),
        }
    }

    /// Reaps the pause if it has ended. Reports that it sent before it ended are handled first.
    pub(crate) fn reap(&mut self, services: &mut Services) -> Option<Ended> {
        let ended = process::reap(self.pidfd()).ok().flatten()?;
        if services.watch.contains(&EventSource::PauseGate) {
            self.on_gate(services);
        }
        Some(ended)
    }

    /// Answers with the pause's pidfd, the pod's network namespace and, if the pod has one, its user namespace.
    pub(crate) fn answer_namespaces(&self, origin: Origin, services: &mut Services) {
        let Some(netns) = &self.netns else { return services.answer(origin, Err(vanished())) };
        let userns = self.userns.as_ref().map(OwnedFd::try_clone).transpose();
        match (self.child.pidfd.try_clone(), netns.try_clone(), userns) {
            (Ok(pidfd), Ok(netns), Ok(userns)) => {
                let descriptors = [pidfd, netns].into_iter().chain(userns).collect();
                let outcome = Outcome::Sandbox { pid: self.pid() };
                services.answer_with(origin, Ok(outcome), descriptors);
            }
            _ => services.answer(origin, Err(state("the keeper", "out of descriptors"))),
        }
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
