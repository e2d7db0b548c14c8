//! The containers of the pod. Each event and each call goes to the container that it names.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::Instant;

use berth_runtime::init::Descriptors;
use berth_runtime::init::container::JoinTargets;
use berth_runtime::plan::{ContainerPlan, PidNamespace};
use berth_runtime::wire::{ContainerSnapshot, Failure, Outcome};

use crate::container::{Container, NewContainer};
use crate::failure::{Answer, Origin, not_found, state};
use crate::pause::Pause;
use crate::services::Services;

/// The containers, by id.
#[derive(Debug, Default)]
pub(crate) struct Containers {
    /// Boxed: a node of the map has room for eleven entries.
    entries: BTreeMap<String, Box<Container>>,
    /// The number of the next log.
    next_log: u32,
}

/// A call to create a container.
#[derive(Debug)]
pub(crate) struct CreateCall<'a> {
    pub(crate) id: String,
    pub(crate) folder: String,
    pub(crate) plan: &'a ContainerPlan,
    pub(crate) descriptors: &'a [OwnedFd],
}

impl Containers {
    /// Starts to create a container. The call is answered later.
    pub(crate) fn create(
        &mut self,
        origin: Origin,
        call: CreateCall<'_>,
        pause: Option<&Pause>,
        services: &mut Services,
    ) -> Result<(), Failure> {
        let CreateCall { id, folder, plan, descriptors } = call;
        if self.entries.contains_key(&id) {
            return Err(state(&format!("container {id}"), "created already"));
        }
        let pid_target = match &plan.pid {
            PidNamespace::New | PidNamespace::Host => None,
            PidNamespace::Pod => match pause {
                Some(pause) if pause.shares_pids() => Some(pause.pidfd()),
                // The pause is in the host's process namespace, which the plan did not request.
                _ => return Err(state("the pod", "without a process namespace")),
            },
            PidNamespace::Container(target) => Some(self.running(target)?.pidfd()),
        };
        let joined =
            JoinTargets { pause: pause.map(Pause::pidfd), userns: pause.and_then(Pause::userns), pid_target };
        let (descriptors, log) = (Descriptors(descriptors), self.next_log);
        let new = NewContainer { id: id.clone(), folder, plan, descriptors, joined, log, origin };
        let container = Container::create(new, services)?;
        self.next_log = log.wrapping_add(1);
        self.entries.insert(id, Box::new(container));
        Ok(())
    }

    /// # Errors
    /// There is no such container.
    pub(crate) fn find(&mut self, id: &str) -> Result<&mut Container, Failure> {
        self.entries.get_mut(id).map(Box::as_mut).ok_or_else(|| not_found(&format!("container {id}")))
    }

    /// # Errors
    /// There is no such container, or its command does not run.
    pub(crate) fn running(&self, id: &str) -> Result<&Container, Failure> {
        let container = self.entries.get(id).ok_or_else(|| not_found(&format!("container {id}")))?;
        container.require_running()?;
        Ok(container)
    }

    /// Removes a container. If its process still runs, it is killed; it is reaped as an orphan, and its end is not
    /// reported. Pending calls to create or start it are answered first. Returns `None` if the call is answered
    /// later, after the `poststop` hooks.
    pub(crate) fn remove(
        &mut self,
        origin: Origin,
        id: &str,
        services: &mut Services,
    ) -> Result<Option<Outcome>, Failure> {
        if self.find(id)?.defer_removal(origin, services) {
            self.answer_removals(id, services);
            return Ok(None);
        }
        self.forget(id, services).map(Some)
    }

    fn forget(&mut self, id: &str, services: &mut Services) -> Answer {
        let container = self.find(id)?;
        container.fail(state(&format!("container {id}"), "being removed"), services);
        container.unwatch(services);
        container.kill();
        self.entries.remove(id);
        Ok(Outcome::Done)
    }

    /// Lets a container handle an event. Events of containers that do not exist any more are ignored.
    pub(crate) fn on_event(
        &mut self,
        id: &str,
        services: &mut Services,
        handle: impl FnOnce(&mut Container, &mut Services),
    ) {
        let Some(container) = self.entries.get_mut(id) else { return };
        handle(container, services);
        self.answer_removals(id, services);
    }

    /// Removes a container whose `poststop` hooks have ended, if a call waits for this.
    fn answer_removals(&mut self, id: &str, services: &mut Services) {
        let waiting = self.entries.get_mut(id).map(|container| container.due_removals()).unwrap_or_default();
        if waiting.is_empty() {
            return;
        }
        let result = self.forget(id, services);
        for origin in waiting {
            services.answer(origin, result.clone());
        }
    }

    fn for_each(&mut self, services: &mut Services, handle: impl Fn(&mut Container, &mut Services)) {
        for id in self.entries.keys().cloned().collect::<Vec<_>>() {
            self.on_event(&id, services, &handle);
        }
    }

    /// Continues to end the containers that have exited.
    pub(crate) fn continue_endings(&mut self, services: &mut Services) {
        self.for_each(services, Container::continue_ending);
    }

    /// Continues what waited for the writer.
    pub(crate) fn on_writer(&mut self, services: &mut Services) {
        self.continue_endings(services);
        if !services.writer.is_blocked() {
            self.for_each(services, Container::resume_output);
        }
    }

    /// Returns when the next container that ends has waited long enough for its log.
    pub(crate) fn endings_at(&self) -> Option<Instant> {
        self.entries.values().filter_map(|container| container.ending_at()).min()
    }

    /// Finds the container whose first process has this pid.
    pub(crate) fn of_child(&self, pid: i32) -> Option<String> {
        let (id, _) = self.entries.iter().find(|(_, container)| container.is_child(pid))?;
        Some(id.clone())
    }

    /// Excludes the OOM kills until now for the containers that have not ended. Call this after the ends of all children that
    /// have ended by now are handled.
    pub(crate) fn exclude_oom_kills(&mut self) {
        self.entries.values_mut().for_each(|container| container.exclude_oom_kills());
    }

    /// Handles all pending reports of first processes that have not reached their gate.
    pub(crate) fn drain_gates(&mut self, services: &mut Services) {
        self.for_each(services, Container::drain_gate);
    }

    pub(crate) fn snapshots(&self) -> Vec<ContainerSnapshot> {
        self.entries.values().map(|container| container.snapshot()).collect()
    }

    /// Kills the first processes.
    pub(crate) fn kill_all(&self) {
        self.entries.values().for_each(|container| container.kill());
    }
}
