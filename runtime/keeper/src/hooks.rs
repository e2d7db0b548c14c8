//! The hooks of a container that run in the host's namespaces: `prestart` and `createRuntime` while it is created,
//! `poststart` when its command runs, `poststop` when it has ended. A child of the keeper, the runner, runs them one
//! after the other, so that a hook that hangs does not stop the keeper. The keeper outlives the daemon: a daemon that
//! is killed neither loses hooks nor repeats them.

use std::os::fd::AsFd;
use std::rc::Rc;

use berth_runtime::hooks;
use berth_runtime::init::Descriptors;
use berth_runtime::plan::{CgroupJoin, HookKind, Hooks};
use berth_runtime::sys;
use berth_runtime::sys::namespaces::Namespaces;
use berth_runtime::sys::process::default_signals;
use berth_runtime::wire::transport::Report;
use berth_runtime::wire::{Failure, InitFailure, Step};

use crate::failure::{Origin, system, vanished};
use crate::gate::{GateEvent, read_gate};
use crate::spawn::{SpawnOptions, Spawned, spawn};
use crate::watch::{EventSource, Watch};

/// The hooks of a container and their progress.
#[derive(Debug)]
pub(crate) struct ContainerHooks {
    container: Rc<str>,
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
    pub(crate) fn new(container: Rc<str>, plan: Option<&Hooks>) -> Self {
        Self {
            container,
            plan: plan.filter(|hooks| hooks.has_host_hooks()).cloned(),
            runner: None,
            starting: None,
            poststop: Poststop::default(),
            removals: Vec::new(),
        }
    }

    /// Whether there are hooks of this kind.
    pub(crate) fn has(&self, kind: HookKind) -> bool {
        self.plan.as_ref().is_some_and(|plan| plan.has(kind))
    }

    /// Starts the hooks of one kind. Returns their result if it is known already: there are none, or they cannot be
    /// started.
    pub(crate) fn start(
        &mut self,
        kind: HookKind,
        pid: i32,
        watch: &mut Watch,
    ) -> Option<Result<(), Failure>> {
        let Some(plan) = self.plan.as_ref().filter(|plan| plan.has(kind)) else { return Some(Ok(())) };
        let started = start_runner(plan, kind, pid).and_then(|runner| {
            watch.add(runner.gate.as_fd(), self.source())?;
            Ok(runner)
        });
        match started {
            Ok(runner) => {
                self.runner = Some((runner, kind));
                None
            }
            Err(error) => Some(Err(system(&error))),
        }
    }

    /// Handles an event of the runner. Returns the kind that has ended, and its result.
    pub(crate) fn on_event(&mut self, watch: &mut Watch) -> Option<(HookKind, Result<(), Failure>)> {
        let (runner, _) = self.runner.as_ref()?;
        let result = match read_gate(runner.gate.as_fd())? {
            GateEvent::Report(Report::Ready, _) => Ok(()),
            GateEvent::Report(Report::Failed(failure), _) => Err(Failure::Init(failure)),
            _ => Err(vanished()),
        };
        self.end_runner(watch).map(|kind| (kind, result))
    }

    /// Drops the runner. Closing its socket ends the hook that it runs, except for `poststop` hooks.
    pub(crate) fn end_runner(&mut self, watch: &mut Watch) -> Option<HookKind> {
        let (runner, kind) = self.runner.take()?;
        watch.remove(runner.gate.as_fd(), &self.source());
        Some(kind)
    }

    /// Drops the runner if it runs hooks of the creation or of the start, which are of no use to a container that is
    /// removed. Returns their kind.
    pub(crate) fn cancel_start(&mut self, watch: &mut Watch) -> Option<HookKind> {
        match self.runner.as_ref()? {
            (_, HookKind::Poststop) => None,
            _ => self.end_runner(watch),
        }
    }

    /// Notes that hooks of the container run. From now on its `poststop` hooks run when it ends.
    pub(crate) fn begin_creation(&mut self) {
        if self.has(HookKind::Poststop) {
            self.poststop = Poststop::Pending;
        }
    }

    /// Notes the call that waits for the `poststart` hooks, and the time of the start.
    pub(crate) fn begin_poststart(&mut self, origin: Origin, at: i64) {
        self.starting = Some((origin, at));
    }

    /// Takes the call that waits for the `poststart` hooks.
    pub(crate) fn end_poststart(&mut self) -> Option<(Origin, i64)> {
        self.starting.take()
    }

    /// Whether the end of the container is reported later: its start is not reported yet.
    pub(crate) fn delay_end(&self) -> bool {
        self.starting.is_some()
    }

    /// Returns whether the `poststop` hooks must run now. They run once.
    pub(crate) fn begin_poststop(&mut self) -> bool {
        let due = self.poststop == Poststop::Pending;
        if due {
            self.poststop = Poststop::Running;
        }
        due
    }

    /// Notes the result of the `poststop` hooks. Returns their failure.
    pub(crate) fn end_poststop(&mut self, result: Result<(), Failure>) -> Option<InitFailure> {
        let failure = result.err().map(|failure| match failure {
            Failure::Init(failure) => failure,
            other => InitFailure { step: Step::Hook, errno: 0, index: None, detail: other.to_string() },
        });
        self.poststop = Poststop::Done(failure.clone());
        failure
    }

    /// Returns the failure of a `poststop` hook.
    pub(crate) fn poststop_failure(&self) -> Option<InitFailure> {
        match &self.poststop {
            Poststop::Done(failure) => failure.clone(),
            _ => None,
        }
    }

    /// Returns whether a removal must wait for the `poststop` hooks. It is then answered after them.
    pub(crate) fn defer_removal(&mut self, origin: Origin) -> bool {
        match self.poststop {
            Poststop::NotNeeded | Poststop::Done(_) => false,
            Poststop::Pending | Poststop::Running => {
                self.removals.push(origin);
                true
            }
        }
    }

    /// Takes the removals that have waited long enough.
    pub(crate) fn due_removals(&mut self) -> Vec<Origin> {
        match self.poststop {
            Poststop::Done(_) => std::mem::take(&mut self.removals),
            _ => Vec::new(),
        }
    }

    fn source(&self) -> EventSource {
        EventSource::Hooks(self.container.to_string())
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: Origin = Origin { connection: 1, request: 2 };

    fn hooks() -> ContainerHooks {
        ContainerHooks::new("c1".into(), None)
    }

    #[test]
    fn hooks_that_do_not_exist_have_ended_at_once() {
        let mut watch = Watch::new().unwrap();
        assert!(matches!(hooks().start(HookKind::Prestart, 1, &mut watch), Some(Ok(()))));
    }

    #[test]
    fn poststop_hooks_run_once_and_removals_wait_for_them() {
        let mut hooks = hooks();
        assert!(!hooks.begin_poststop(), "no hook has run, so none is undone");
        assert!(!hooks.defer_removal(ORIGIN));
        hooks.poststop = Poststop::Pending;
        assert!(hooks.defer_removal(ORIGIN));
        assert!(hooks.begin_poststop() && !hooks.begin_poststop());
        assert!(hooks.due_removals().is_empty());
        let failure = hooks.end_poststop(Err(vanished()));
        assert!(failure.is_some() && hooks.poststop_failure() == failure);
        assert_eq!((hooks.due_removals().len(), hooks.due_removals().len()), (1, 0));
        assert!(!hooks.defer_removal(ORIGIN));
    }

    #[test]
    fn the_end_waits_while_a_start_is_not_answered() {
        let mut hooks = hooks();
        hooks.begin_poststart(ORIGIN, 5);
        assert!(hooks.delay_end());
        assert_eq!(hooks.end_poststart().map(|(_, at)| at), Some(5));
        assert!(!hooks.delay_end());
    }
}
