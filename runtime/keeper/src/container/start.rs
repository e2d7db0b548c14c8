//! The reports of a container's first process, until its command runs or it has failed.

use std::os::fd::{AsFd, OwnedFd};

use berth_runtime::init::START;
use berth_runtime::keeper_step::KeeperStep;
use berth_runtime::sys::{self, Context};
use berth_runtime::wire::transport::Report;
use berth_runtime::wire::{Failure, Outcome};

use crate::container::Container;
use crate::container::state::State;
use crate::failure::{Origin, state, system, vanished};
use crate::gate::{GateEvent, failure_of, read_gate};
use crate::services::Services;
use crate::stamp::now;

impl Container {
    /// Lets the first process through its gate. The call is answered when the command runs, or has failed.
    pub(crate) fn start(&mut self, origin: Origin, services: &mut Services) -> Result<(), Failure> {
        self.state.require_created().map_err(|found| state(&self.name(), found))?;
        if self.runtime().is_some() {
            return self.start_by_runtime(origin, services);
        }
        self.write_to_gate(START, "its gate")?;
        self.state = State::Starting(origin);
        Ok(())
    }

    /// Handles one report of the first process. Returns whether there was one.
    pub(crate) fn on_gate(&mut self, services: &mut Services) -> bool {
        let Some(event) = read_gate(self.child.gate.as_fd()) else { return false };
        match (&self.state, event) {
            (State::Creating(_), GateEvent::Report(Report::Ready, _)) => self.reach_gate(services),
            (State::Creating(_), GateEvent::Report(Report::Terminal, Some(master))) => {
                if let Err(error) = self.set_terminal(master) {
                    self.fail(system(&error), services);
                }
            }
            (State::Creating(_), GateEvent::Report(Report::Hooks, _)) => self.run_create_hooks(services),
            (State::Creating(_), GateEvent::Report(Report::Created { pid }, _)) => {
                self.follow_created(pid, services);
            }
            (State::Creating(_), GateEvent::End) if self.runtime().is_some() => self.creation_ended(services),
            (State::Creating(_), GateEvent::Moved(sender)) => {
                if let Err(error) = self.child.moved(sender) {
                    self.fail(system(&error), services);
                }
            }
            (State::Starting(_), GateEvent::Report(Report::Listener, Some(descriptor))) => {
                self.supervise(&descriptor, services);
            }
            (State::Starting(_), GateEvent::Report(Report::Restored { pid }, _)) => {
                self.follow_restored(pid, services);
            }
            (State::Starting(_), GateEvent::End) if self.restores() => self.restore_ended(services),
            (State::Starting(_), GateEvent::End) => {
                let at = now();
                if let Some(origin) = self.state.run(at) {
                    KeeperStep::Runs.reach();
                    self.answer_start(origin, at, services);
                }
                self.gate_closed(services);
            }
            (State::Creating(_) | State::Starting(_), GateEvent::Report(report, _)) => {
                self.fail(failure_of(report), services);
            }
            (State::Creating(_), GateEvent::End) => self.fail(vanished(), services),
            _ => self.gate_closed(services),
        }
        true
    }

    /// Handles all pending reports, if another process may still continue in the place of the first one.
    pub(crate) fn drain_gate(&mut self, services: &mut Services) {
        // A closed socket is reported again and again, so the state must be checked each time.
        while (self.state.is_creating() || self.state.is_starting() && self.restores())
            && self.on_gate(services)
        {}
    }

    /// Handles the failure of the first process: answers the pending call, and kills the process if it still runs.
    /// Does nothing if no call waits for the first process.
    pub(crate) fn fail(&mut self, failure: Failure, services: &mut Services) {
        let Some(origin) = self.state.fail(&failure) else { return };
        self.kill();
        self.end_unreaped();
        services.answer(origin, Err(failure));
        self.gate_closed(services);
    }

    /// Writes a byte that the first process waits for.
    pub(super) fn write_to_gate(&self, byte: u8, what: &str) -> Result<(), Failure> {
        let written = rustix::io::write(&self.child.gate, &[byte]);
        written.map(drop).map_err(|errno| Failure::System {
            action: format!("let {} past {what}", self.name()),
            errno: errno.raw_os_error(),
        })
    }

    pub(super) fn reach_gate(&mut self, services: &mut Services) {
        let Some(origin) = self.state.reach_gate() else { return };
        KeeperStep::AtGate.reach();
        let watched = self.outputs.watch(&mut services.watch);
        let result = watched.map(|()| Outcome::Created { pid: self.pid() }).map_err(|error| system(&error));
        let descriptors = self.child.pidfd.try_clone().into_iter().collect();
        services.answer_with(origin, result, descriptors);
    }

    /// Handles the end of the socket: no process holds its other end.
    pub(super) fn gate_closed(&mut self, services: &mut Services) {
        self.close_gate(services);
        if let Some(ended) = self.child.take_exit() {
            self.begin_ending(ended, services);
        }
    }

    /// Stores the terminal's master. Its output is the container's only stream. Only the first master is accepted:
    /// other processes may get access to the socket of a first process that has moved.
    fn set_terminal(&mut self, master: OwnedFd) -> sys::Result<()> {
        if !self.awaits_terminal {
            return Ok(());
        }
        self.awaits_terminal = false;
        rustix::io::ioctl_fionbio(&master, true).on("ioctl(FIONBIO)", "")?;
        let terminal = master.try_clone().on("dup", "")?;
        let input = self.has_stdin.then(|| master.try_clone().on("dup", "")).transpose()?;
        self.attachments.set_terminal(terminal, input);
        self.outputs.set_terminal(master);
        Ok(())
    }

    /// Sends the descriptor of the filter that the first process has loaded to the supervisor.
    fn supervise(&mut self, descriptor: &OwnedFd, services: &mut Services) {
        let Some(supervisor) = &self.supervisor else { return };
        let Err(failure) = supervisor.hand_over(self.pid(), self.pid(), descriptor) else { return };
        let failure = Failure::Init(failure);
        if let Some(origin) = self.state.fail(&failure) {
            self.kill();
            services.answer(origin, Err(failure));
        }
    }
}
