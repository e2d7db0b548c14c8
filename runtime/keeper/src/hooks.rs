//! The hooks of a container that run in the host's namespaces: `prestart` and `createRuntime` while it is created,
//! `poststart` when its command runs, `poststop` when it has ended. A child of the keeper, the runner, runs them one
//! after the other, so that a hook that hangs does not stop the keeper. The keeper outlives the daemon: a daemon that
//! is killed neither loses hooks nor repeats them.

use std::os::fd::AsFd;

use berth_runtime::hooks;
use berth_runtime::init::{Descriptors, HOOKED};
use berth_runtime::plan::{CgroupJoin, HookKind, Hooks};
use berth_runtime::sys;
use berth_runtime::sys::namespaces::Namespaces;
use berth_runtime::sys::process::default_signals;
use berth_runtime::wire::transport::Report;
use berth_runtime::wire::{Event, Failure, InitFailure, Outcome, POSTSTOP_EVENT};

use crate::calls::state;
use crate::container::State;
use crate::keeper::{GateEvent, Keeper, Origin, read_gate, system, vanished};
use crate::report;
use crate::spawn::{SpawnOptions, Spawned, spawn};
use crate::watch::EventSource;

/// The hooks of a container and their progress.
#[derive(Debug, Default)]
pub(crate) struct ContainerHooks {
    plan: Option<Hooks>,
    /// The runner and the kind that it runs.
    runner: Option<(Spawned, HookKind)>,
    /// The call that waits for the `poststart` hooks, and the time of the start.
    starting: Option<(Origin, i64)>,
    /// How far the `poststop` hooks are.
    poststop: Poststop,
    /// The calls that wait for the `poststop` hooks.
    removals: Vec<Origin>,
}

/// The progress of the `poststop` hooks. They run once.
#[derive(Debug, Default, PartialEq)]
enum Poststop {
    /// No hook of the container has run, so none needs to be undone.
    #[default]
    NotNeeded,
    Pending,
    Running,
    Done(Option<InitFailure>),
}

impl ContainerHooks {
    pub(crate) fn new(plan: Option<&Hooks>) -> Self {
        Self { plan: plan.filter(|hooks| hooks.has_host_hooks()).cloned(), ..Self::default() }
    }

    /// Whether the end of the container is reported later: its start is not reported yet.
    pub(crate) fn delay_end(&self) -> bool {
        self.starting.is_some()
    }

    /// Returns the failure of a `poststop` hook.
    pub(crate) fn poststop_failure(&self) -> Option<InitFailure> {
        match &self.poststop {
            Poststop::Done(failure) => failure.clone(),
            _ => None,
        }
    }

    fn has(&self, kind: HookKind) -> bool {
        self.plan.as_ref().is_some_and(|plan| plan.has(kind))
    }
}

impl Keeper {
    /// Runs the hooks of a container whose environment exists. It is then let past them.
    pub(crate) fn run_create_hooks(&mut self, id: &str) {
        if let Some(container) = self.containers.get_mut(id)
            && container.hooks.has(HookKind::Poststop)
        {
            container.hooks.poststop = Poststop::Pending;
        }
        self.run_hooks(id, HookKind::Prestart);
    }

    /// Answers the start of a container whose command runs, after its `poststart` hooks.
    pub(crate) fn command_runs(&mut self, id: &str, origin: Origin, at: i64) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if !container.hooks.has(HookKind::Poststart) {
            return self.answer(origin, Ok(Outcome::Started { at }), Vec::new());
        }
        container.hooks.starting = Some((origin, at));
        self.run_hooks(id, HookKind::Poststart);
    }

    /// Runs the `poststop` hooks of a container whose end was reported.
    pub(crate) fn run_poststop_hooks(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if container.hooks.poststop == Poststop::Pending {
            container.hooks.poststop = Poststop::Running;
            // The hooks of a creation that has failed are of no use any more.
            self.end_runner(id);
            self.run_hooks(id, HookKind::Poststop);
        }
    }

    /// Whether the removal of a container is answered later: its `poststop` hooks have not run, or still run.
    pub(crate) fn removal_waits(&mut self, origin: Origin, id: &str) -> bool {
        let Some(container) = self.containers.get_mut(id) else { return false };
        match container.hooks.poststop {
            Poststop::NotNeeded | Poststop::Done(_) => return false,
            Poststop::Pending | Poststop::Running => container.hooks.removals.push(origin),
        }
        self.fail_container(id, state(&format!("container {id}"), "being removed"));
        if let Some(container) = self.containers.get_mut(id) {
            if !matches!(container.state, State::Exited(_)) {
                sys::process::kill(container.child.pidfd.as_fd());
            }
            // The hooks of the creation and of the start are of no use any more.
            if container.hooks.runner.as_ref().is_some_and(|(_, kind)| *kind != HookKind::Poststop) {
                self.end_runner(id);
                self.hooks_ended(id, Err(state(&format!("container {id}"), "being removed")));
            }
        }
        true
    }

    /// Runs the hooks of one kind, if there are any.
    fn run_hooks(&mut self, id: &str, kind: HookKind) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(plan) = container.hooks.plan.as_ref().filter(|plan| plan.has(kind)) else {
            return self.kind_ended(id, kind, Ok(()));
        };
        match start_runner(plan, kind, container.child.pid) {
            Ok(runner) => {
                let watched = self.watch.add(runner.gate.as_fd(), EventSource::Hooks(id.to_owned()));
                container.hooks.runner = Some((runner, kind));
                if let Err(error) = watched {
                    container.hooks.runner = None;
                    self.kind_ended(id, kind, Err(system(&error)));
                }
            }
            Err(error) => self.kind_ended(id, kind, Err(system(&error))),
        }
    }

    /// Handles the report of a runner.
    pub(crate) fn hooks_event(&mut self, id: &str) {
        let runner = self.containers.get(id).and_then(|container| container.hooks.runner.as_ref());
        let Some(event) = runner.and_then(|(runner, _)| read_gate(runner.gate.as_fd())) else { return };
        let result = match event {
            GateEvent::Report(Report::Ready, _) => Ok(()),
            GateEvent::Report(Report::Failed(failure), _) => Err(Failure::Init(failure)),
            _ => Err(vanished()),
        };
        self.hooks_ended(id, result);
    }

    fn hooks_ended(&mut self, id: &str, result: Result<(), Failure>) {
        if let Some(kind) = self.end_runner(id) {
            self.kind_ended(id, kind, result);
        }
    }

    /// Drops the runner. Closing its socket ends the hook that it runs, except for `poststop` hooks.
    pub(crate) fn end_runner(&mut self, id: &str) -> Option<HookKind> {
        let (runner, kind) = self.containers.get_mut(id)?.hooks.runner.take()?;
        self.watch.remove(runner.gate.as_fd(), &EventSource::Hooks(id.to_owned()));
        Some(kind)
    }

    fn kind_ended(&mut self, id: &str, kind: HookKind, result: Result<(), Failure>) {
        match (kind, result) {
            (HookKind::Prestart, Ok(())) if self.is_being_created(id) => {
                self.run_hooks(id, HookKind::CreateRuntime)
            }
            (HookKind::CreateRuntime, Ok(())) if self.is_being_created(id) => self.let_past_hooks(id),
            (HookKind::Prestart | HookKind::CreateRuntime, Err(failure)) => self.fail_container(id, failure),
            (HookKind::Poststart, result) => self.poststart_ended(id, result),
            (HookKind::Poststop, result) => self.poststop_ended(id, result),
            // The first process has ended, or runs these itself.
            _ => {}
        }
    }

    fn is_being_created(&self, id: &str) -> bool {
        self.containers.get(id).is_some_and(|container| matches!(container.state, State::Creating(_)))
    }

    fn let_past_hooks(&mut self, id: &str) {
        let Some(container) = self.containers.get(id) else { return };
        if let Err(errno) = rustix::io::write(&container.child.gate, &[HOOKED]) {
            let action = format!("let container {id} past its hooks");
            self.fail_container(id, Failure::System { action, errno: errno.raw_os_error() });
        }
    }

    /// Answers the start. If a hook has failed, the container is stopped (OCI runtime specification, "Lifecycle").
    fn poststart_ended(&mut self, id: &str, result: Result<(), Failure>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some((origin, at)) = container.hooks.starting.take() else { return };
        if let Err(failure) = &result {
            // The exit record names the failure: it can arrive before or after the answer.
            if let Failure::Init(failure) = failure {
                container.state = State::Failed(Some(failure.clone()));
            }
            sys::process::kill(container.child.pidfd.as_fd());
        }
        let ended = container.child.take_exit();
        self.answer(origin, result.map(|()| Outcome::Started { at }), Vec::new());
        if let Some(ended) = ended {
            self.begin_ending(id, ended);
        }
    }

    fn poststop_ended(&mut self, id: &str, result: Result<(), Failure>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let failure = result.err().map(|failure| match failure {
            Failure::Init(failure) => failure,
            other => InitFailure { detail: other.to_string(), ..hook_failure() },
        });
        container.hooks.poststop = Poststop::Done(failure.clone());
        let removals = std::mem::take(&mut container.hooks.removals);
        if let Some(failure) = failure {
            report(&format!("container {id}: {failure}"));
            let event = Event::PoststopFailed { container: id.to_owned(), failure };
            self.broadcast_since(POSTSTOP_EVENT, &event);
        }
        if removals.is_empty() {
            return;
        }
        let result = self.forget(id);
        for origin in removals {
            self.answer(origin, result.clone(), Vec::new());
        }
    }
}

fn hook_failure() -> InitFailure {
    InitFailure { step: berth_runtime::wire::Step::Hook, errno: 0, index: None, detail: String::new() }
}

/// Clones the runner, which runs the hooks of one kind, reports and ends.
fn start_runner(plan: &Hooks, kind: HookKind, pid: i32) -> sys::Result<Spawned> {
    let options = SpawnOptions {
        namespaces: Namespaces::NONE,
        cgroup: &CgroupJoin::default(),
        userns: None,
        oom_score_adj: None,
        moves: false,
        descriptors: Descriptors(&[]),
    };
    spawn(options, |gate, _single| {
        // The keeper ignores signals, and its children inherit that.
        default_signals();
        let socket = gate.into_socket();
        // The `poststop` hooks run to their end, even if the keeper receives a call to end.
        let cancel = (kind != HookKind::Poststop).then_some(socket.as_fd());
        let report = match hooks::run(plan, kind, pid, cancel) {
            Ok(()) => Report::Ready,
            Err(failure) => Report::Failed(failure),
        };
        // If the keeper has ended, there is no process to report to.
        drop(sys::socket::send(socket.as_fd(), &report.encode(), &[]));
    })
}
