//! A container that an OCI runtime creates and starts, through its command line. Children of the keeper, the callers, call
//! the runtime. The process that it has created takes the place of the first caller.

use std::os::fd::AsFd;

use berth_runtime::init::{Descriptors, runtime};
use berth_runtime::plan::{CgroupJoin, RuntimePlan};
use berth_runtime::sys;
use berth_runtime::sys::namespaces::Namespaces;
use berth_runtime::wire::Failure;
use berth_runtime::wire::transport::Report;

use crate::container::Container;
use crate::container::state::State;
use crate::failure::{Origin, state, system, vanished};
use crate::gate::{GateEvent, failure_of, read_gate};
use crate::services::Services;
use crate::spawn::{SpawnOptions, Spawned, kill_unwatched, spawn};
use crate::stamp::now;
use crate::watch::EventSource;

/// The runtime of a container, and how far its calls are.
#[derive(Debug)]
pub(super) struct Delegation {
    plan: RuntimePlan,
    /// Whether the runtime has created the first process. Before this, the container's child is the caller.
    is_created: bool,
    /// The caller that starts the container.
    starter: Option<Spawned>,
}

impl Delegation {
    pub(super) fn new(plan: RuntimePlan) -> Self {
        Self { plan, is_created: false, starter: None }
    }
}

/// The options of a child that calls a runtime: it stays in the keeper's cgroup and namespaces.
pub(crate) fn caller_options<'a>(cgroup: &'a CgroupJoin, descriptors: Descriptors<'a>) -> SpawnOptions<'a> {
    SpawnOptions {
        namespaces: Namespaces::NONE,
        cgroup,
        userns: None,
        oom_score_adj: None,
        moves: false,
        descriptors,
    }
}

impl Container {
    /// The OCI runtime that created it, if that is not berth's own.
    pub(crate) fn runtime(&self) -> Option<&RuntimePlan> {
        self.delegation.as_ref().map(|delegation| &delegation.plan)
    }

    /// Whether the caller that creates the container is its child.
    pub(super) fn awaits_creation(&self) -> bool {
        self.delegation.as_ref().is_some_and(|delegation| !delegation.is_created)
    }

    /// Whether the end of the container is reported later: the runtime has not reported its start yet.
    pub(super) fn awaits_start(&self) -> bool {
        self.delegation.as_ref().is_some_and(|delegation| delegation.starter.is_some())
    }

    /// Ends the caller, which then kills the runtime.
    pub(super) fn cancel_creation(&self) {
        // If the caller has ended, there is nothing to cancel.
        let _ended = rustix::net::shutdown(&self.child.gate, rustix::net::Shutdown::Both);
    }

    /// Follows the process that the runtime has created.
    pub(super) fn follow_created(&mut self, pid: i32, services: &mut Services) {
        let Some(delegation) = self.delegation.as_mut().filter(|delegation| !delegation.is_created) else {
            return;
        };
        delegation.is_created = true;
        if let Err(error) = self.child.adopt(pid, &mut services.orphans) {
            self.fail(system(&error), services);
        }
    }

    /// Handles the end of the caller's socket.
    pub(super) fn creation_ended(&mut self, services: &mut Services) {
        if self.awaits_creation() {
            return self.fail(vanished(), services);
        }
        if self.child.has_exit() {
            self.fail(state(&self.name(), "ended before its start"), services);
            return;
        }
        self.reach_gate(services);
        self.gate_closed(services);
    }

    /// Has the runtime start the container. The call is answered later.
    pub(super) fn start_by_runtime(
        &mut self,
        origin: Origin,
        services: &mut Services,
    ) -> Result<(), Failure> {
        let source = EventSource::Starter(self.id.to_string());
        let Some(delegation) = &mut self.delegation else { return Err(vanished()) };
        let starter = spawn_starter(&delegation.plan).map_err(|error| system(&error))?;
        let watched = services.watch.add(starter.gate.as_fd(), source);
        watched.map_err(|error| kill_unwatched(&starter, &error))?;
        delegation.starter = Some(starter);
        self.state = State::Starting(origin);
        Ok(())
    }

    /// Handles the report of the caller that starts the container.
    pub(crate) fn on_starter(&mut self, services: &mut Services) {
        let starter = self.delegation.as_ref().and_then(|delegation| delegation.starter.as_ref());
        let Some(event) = starter.and_then(|starter| read_gate(starter.gate.as_fd())) else { return };
        self.end_starter(services);
        match event {
            GateEvent::Report(Report::Ready, _) => {
                let at = now();
                if let Some(origin) = self.state.run(at) {
                    self.answer_start(origin, at, services);
                }
            }
            GateEvent::Report(report, _) => self.fail(failure_of(report), services),
            GateEvent::Moved(_) | GateEvent::End => self.fail(vanished(), services),
        }
        if let Some(ended) = self.child.take_exit() {
            self.begin_ending(ended, services);
        }
    }

    /// Drops the caller that starts the container. Closing its socket ends the call.
    pub(super) fn end_starter(&mut self, services: &mut Services) {
        let starter = self.delegation.as_mut().and_then(|delegation| delegation.starter.take());
        if let Some(starter) = starter {
            services.watch.remove(starter.gate.as_fd(), &EventSource::Starter(self.id.to_string()));
        }
    }
}

fn spawn_starter(plan: &RuntimePlan) -> sys::Result<Spawned> {
    let cgroup = CgroupJoin::default();
    spawn(caller_options(&cgroup, Descriptors(&[])), |gate, _single| runtime::start(plan, gate))
}
