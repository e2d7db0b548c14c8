//! A container: its first process, its streams, its hooks and its exit.
//!
//! * [`create`]: clones the first process
//! * [`mod@state`]: the states, and what a daemon sees of them
//! * [`start`]: the reports of the first process, until its command runs or it has failed
//! * [`hook_steps`]: what follows the hooks of each kind
//! * [`copy`]: copies output to the log and to clients
//! * [`delegated`]: an OCI runtime that creates and starts it
//! * [`restore`]: a checkpoint that is restored in the place of the command
//! * [`end`]: reports the exit when the log is written
//! * [`oom`]: whether a process was killed for lack of memory
//! * [`mod@state`]: the states of a container

mod copy;
mod create;
mod delegated;
mod end;
mod hook_steps;
mod oom;
mod restore;
mod start;
mod state;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use berth_runtime::init::Descriptors;
use berth_runtime::plan::FdSlot;
use berth_runtime::sys::keys::KeyringName;
use berth_runtime::sys::{Context, process};
use berth_runtime::wire::{ContainerSnapshot, Failure, Outcome};

use crate::attachments::{Attachments, StreamSlots};
use crate::container::delegated::Delegation;
use crate::container::end::Ending;
use crate::container::oom::OomKills;
use crate::container::restore::RestoreProgress;
use crate::container::state::State;
use crate::failure::{Answer, Origin, state, system};
use crate::hooks::ContainerHooks;
use crate::output::Outputs;
use crate::services::Services;
use crate::spawn::Spawned;
use crate::supervisor::Supervisor;
use crate::watch::{ClientStream, EventSource};

pub(crate) use crate::container::create::NewContainer;
pub(crate) use crate::container::delegated::caller_options;

/// A container.
#[derive(Debug)]
pub(crate) struct Container {
    id: Rc<str>,
    folder: String,
    child: Spawned,
    state: State,
    outputs: Outputs,
    attachments: Attachments,
    /// Whether the container has standard input. If it has a terminal, the terminal is its input.
    has_stdin: bool,
    /// Whether the report with the terminal is still expected.
    awaits_terminal: bool,
    oom_kills: OomKills,
    /// The session keyring of its processes.
    keyring: KeyringName,
    /// The supervisor of its system calls, if its filter has one.
    supervisor: Option<Supervisor>,
    hooks: ContainerHooks,
    /// Set while it has ended, but its exit is not reported yet.
    ending: Option<Ending>,
    /// Set if a checkpoint is restored in the place of its command.
    restore: Option<RestoreProgress>,
    /// Set if an OCI runtime creates and starts it.
    delegation: Option<Delegation>,
}

impl Container {
    pub(crate) fn id(&self) -> &Rc<str> {
        &self.id
    }

    pub(crate) fn folder(&self) -> &str {
        &self.folder
    }

    /// The pid of its first process.
    pub(crate) fn pid(&self) -> i32 {
        self.child.pid
    }

    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.child.pidfd.as_fd()
    }

    /// The session keyring of its processes.
    pub(crate) fn keyring(&self) -> &KeyringName {
        &self.keyring
    }

    /// Returns whether a pid is that of its first process. If that has ended, another process may have the pid.
    pub(crate) fn is_child(&self, pid: i32) -> bool {
        self.child.is(pid) && !self.state.is_exited()
    }

    /// Its phase, for a daemon that connects.
    pub(crate) fn snapshot(&self) -> ContainerSnapshot {
        ContainerSnapshot {
            id: self.id.to_string(),
            pid: self.pid(),
            phase: self.state.phase(),
            poststop_failure: self.hooks.poststop_failure(),
        }
    }

    /// # Errors
    /// Its command does not run.
    pub(crate) fn require_running(&self) -> Result<(), Failure> {
        self.state.require_running().map_err(|found| state(&self.name(), found))
    }

    /// Sends a signal to its first process.
    pub(crate) fn signal(&self, signal: i32) -> Answer {
        process::signal(self.pidfd(), signal).map_err(|error| system(&error))?;
        Ok(Outcome::Done)
    }

    pub(crate) fn kill(&self) {
        match self.awaits_creation() {
            true => self.cancel_creation(),
            false => process::kill(self.pidfd()),
        }
    }

    /// Switches its log to another file.
    pub(crate) fn reopen_log(
        &mut self,
        log: Option<FdSlot>,
        descriptors: &[OwnedFd],
        services: &mut Services,
    ) -> Answer {
        let opened = log.map(|slot| Descriptors(descriptors).get(slot)).transpose();
        let opened =
            opened.and_then(|fd| fd.map(|fd| fd.try_clone_to_owned().on("dup", "the log")).transpose());
        let reopened = opened.and_then(|opened| self.outputs.reopen_log(opened, services));
        reopened.map_err(|error| system(&error))?;
        Ok(Outcome::Done)
    }

    /// Attaches a client.
    pub(crate) fn attach(
        &mut self,
        origin: Origin,
        client: &str,
        streams: StreamSlots,
        services: &mut Services,
    ) -> Answer {
        self.require_running()?;
        self.attachments.attach(origin, client, streams, self.outputs.open(), &mut services.watch)
    }

    /// Sets the size of its terminal.
    pub(crate) fn resize(&self, width: u16, height: u16) -> Answer {
        self.attachments.resize(width, height)
    }

    /// Handles an event of a client's stream.
    pub(crate) fn on_client(&mut self, client: &str, stream: ClientStream, services: &mut Services) {
        self.attachments.on_client(client, stream, services);
    }

    /// Writes pending input, when the container accepts more.
    pub(crate) fn on_input(&mut self, services: &mut Services) {
        self.attachments.flush_input(&mut services.watch);
    }

    /// Unregisters it from the event loop, before it is dropped.
    pub(crate) fn unwatch(&mut self, services: &mut Services) {
        self.ending = None;
        if !self.drain(services) {
            // No call waits for its log: the rest is dropped.
            let _all = self.drain(services);
        }
        self.attachments.detach_all(&mut services.watch);
        self.hooks.end_runner(&mut services.watch);
        self.end_starter(services);
        self.close_gate(services);
        services.writer.close(self.outputs.log(), &mut services.watch);
    }

    fn gate_source(&self) -> EventSource {
        EventSource::ContainerGate(self.id.to_string())
    }

    fn close_gate(&self, services: &mut Services) {
        services.watch.remove(self.child.gate.as_fd(), &self.gate_source());
    }

    fn name(&self) -> String {
        format!("container {}", self.id)
    }
}
