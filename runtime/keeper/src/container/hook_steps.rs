//! The steps after the hooks of each kind (OCI runtime specification, "Lifecycle").

use berth_runtime::init::HOOKED;
use berth_runtime::plan::HookKind;
use berth_runtime::wire::{Event, Failure, POSTSTOP_EVENT};

use crate::container::Container;
use crate::failure::{Origin, state};
use crate::report;
use crate::services::Services;

impl Container {
    /// Runs the hooks of a container whose environment exists. It is then let past them.
    pub(super) fn run_create_hooks(&mut self, services: &mut Services) {
        self.hooks.begin_creation();
        self.run_hooks(HookKind::Prestart, services);
    }

    /// Answers the start of a container whose command runs, after its `poststart` hooks.
    pub(super) fn answer_start(&mut self, origin: Origin, at: i64, services: &mut Services) {
        if !self.hooks.has(HookKind::Poststart) {
            return services.answer(origin, Ok(self.started(at)));
        }
        self.hooks.begin_poststart(origin, at);
        self.run_hooks(HookKind::Poststart, services);
    }

    /// Runs the `poststop` hooks of a container whose end was reported.
    pub(super) fn run_poststop_hooks(&mut self, services: &mut Services) {
        if self.hooks.begin_poststop() {
            // The hooks of a creation that has failed are of no use any more.
            self.hooks.end_runner(&mut services.watch);
            self.run_hooks(HookKind::Poststop, services);
        }
    }

    /// Handles an event of the process that runs the hooks.
    pub(crate) fn on_hooks(&mut self, services: &mut Services) {
        if let Some((kind, result)) = self.hooks.on_event(&mut services.watch) {
            self.hooks_ended(kind, result, services);
        }
    }

    /// Whether the removal of the container is answered later: its `poststop` hooks have not run, or still run. The
    /// container is ended.
    pub(crate) fn defer_removal(&mut self, origin: Origin, services: &mut Services) -> bool {
        if !self.hooks.defer_removal(origin) {
            return false;
        }
        let removed = || state(&self.name(), "being removed");
        let (failure, of_hooks) = (removed(), removed());
        self.fail(failure, services);
        if !self.state.is_exited() {
            self.kill();
        }
        if let Some(kind) = self.hooks.cancel_start(&mut services.watch) {
            self.hooks_ended(kind, Err(of_hooks), services);
        }
        true
    }

    /// Takes the removals that waited for the `poststop` hooks.
    pub(crate) fn due_removals(&mut self) -> Vec<Origin> {
        self.hooks.due_removals()
    }

    fn run_hooks(&mut self, kind: HookKind, services: &mut Services) {
        if let Some(result) = self.hooks.start(kind, self.child.pid, &mut services.watch) {
            self.hooks_ended(kind, result, services);
        }
    }

    fn hooks_ended(&mut self, kind: HookKind, result: Result<(), Failure>, services: &mut Services) {
        match (kind, result) {
            (HookKind::Prestart, Ok(())) if self.state.is_creating() => {
                self.run_hooks(HookKind::CreateRuntime, services);
            }
            (HookKind::CreateRuntime, Ok(())) if self.state.is_creating() => {
                if let Err(failure) = self.write_to_gate(HOOKED, "its hooks") {
                    self.fail(failure, services);
                }
            }
            (HookKind::Prestart | HookKind::CreateRuntime, Err(failure)) => self.fail(failure, services),
            (HookKind::Poststart, result) => self.poststart_ended(result, services),
            (HookKind::Poststop, result) => self.poststop_ended(result, services),
            // The first process has ended, or runs these itself.
            _ => {}
        }
    }

    /// Answers the start. If a hook has failed, the container is stopped.
    fn poststart_ended(&mut self, result: Result<(), Failure>, services: &mut Services) {
        let Some((origin, at)) = self.hooks.end_poststart() else { return };
        if let Err(failure) = &result {
            // The exit record names the failure: it can arrive before or after the answer.
            self.state.fail_after_start(failure);
            self.kill();
        }
        let ended = self.child.take_exit();
        services.answer(origin, result.map(|()| self.started(at)));
        if let Some(ended) = ended {
            self.begin_ending(ended, services);
        }
    }

    fn poststop_ended(&mut self, result: Result<(), Failure>, services: &mut Services) {
        if let Some(failure) = self.hooks.end_poststop(result) {
            report(&format!("{}: {failure}", self.name()));
            let event = Event::PoststopFailed { container: self.id.to_string(), failure };
            services.broadcast_since(POSTSTOP_EVENT, &event);
        }
    }
}
