//! The operations, step by step. Between two steps of one operation, anything else can happen.

use berth_runtime::wire::Phase;

use super::steps::{Next, changed, forget, keeper_starts, send};
use super::world::{Call, Keeper, KeeperCall, Memory, PID, Process, System, killed, unknown};
use crate::store::{ContainerState, PodState};

/// The step of a completed operation.
const DONE: u8 = u8::MAX;

/// Returns the next steps of an operation; none if it waits for something else.
pub(super) fn next(system: &System, memory: &Memory, call: Call, step: u8) -> Next {
    let mut at = At { system, memory, call, next: Next::new() };
    match call {
        Call::Create => at.create(step),
        Call::Start => at.start(step),
        Call::Stop => at.stop(step),
        Call::Remove => at.remove(step),
        Call::StopPod => at.stop_pod(step),
        Call::RemovePod => at.remove_pod(step),
    }
    at.next
}

/// An operation at one of its steps.
struct At<'a> {
    system: &'a System,
    memory: &'a Memory,
    call: Call,
    next: Next,
}

fn nothing(_: &mut System, _: &mut Memory) {}

impl At<'_> {
    /// Adds a transition to this step.
    fn to(&mut self, label: &str, step: u8, change: impl Fn(&mut System, &mut Memory)) {
        let call = self.call;
        let after = changed(self.system, self.memory, &|system, memory| {
            match step {
                DONE => drop(memory.operations.remove(&call)),
                step => drop(memory.operations.insert(call, step)),
            }
            change(system, memory);
        });
        self.next.push((label.to_owned(), after));
    }

    fn has_pause(&self) -> bool {
        self.memory.pod.as_ref().is_some_and(|pod| pod.pause().is_some())
    }

    /// Adds the transition for a failed write of an intent.
    fn refused_by_disk(&mut self, step: u8) {
        if self.system.budget.refusals > 0 {
            self.to("the write fails", step, |system, _| system.budget.refusals -= 1);
        }
    }

    fn create(&mut self, step: u8) {
        const UNDO: u8 = 9;
        let ready = self.has_pause();
        match step {
            0 if !ready || !self.memory.link => self.to("refused", DONE, nothing),
            0 => {
                self.to("intent", 1, |system, memory| {
                    (memory.creating, system.cgroup) = (true, true);
                    system.disk_container = Some(ContainerState::Creating);
                });
                self.refused_by_disk(DONE);
            }
            1 | 3 if !ready => self.to("not ready", UNDO, nothing),
            1 if self.system.keeper == Keeper::Alive => self.to("first process", 2, |system, _| {
                (system.process, system.keeper_phase) = (Process::Gate, Some(Phase::Created));
            }),
            1 => self.to("no answer", UNDO, |system, memory| {
                send(system, memory, KeeperCall::Create);
            }),
            2 => {
                self.to("record", 3, |system, _| {
                    system.disk_container = Some(ContainerState::Creating.created(PID));
                });
                self.refused_by_disk(UNDO);
            }
            3 => self.to("created", DONE, |_, memory| {
                memory.container = Some(ContainerState::Creating.created(PID));
                memory.creating = false;
            }),
            _ => self.to("undo", DONE, |system, memory| {
                forget(system, memory);
                system.kill();
                (system.disk_container, system.cgroup, system.exit_file) = (None, false, None);
                memory.creating = false;
            }),
        }
    }

    fn start(&mut self, step: u8) {
        const STARTED: u8 = 2;
        const FAILED: u8 = 3;
        /// Waits for the answer of a stopped keeper.
        const WAITS: u8 = 5;
        let starts = self.system.keeper_phase == Some(Phase::Created) && self.system.process == Process::Gate;
        let may_start = self.memory.container.as_ref().is_some_and(|state| state.may_start().is_ok());
        match (step, self.system.keeper) {
            (0, _) if self.memory.turn => {}
            (0, _) if may_start && self.has_pause() && self.memory.link => {
                self.to("lock", 1, |_, memory| memory.turn = true);
            }
            (0, _) => self.to("refused", DONE, nothing),
            (1, Keeper::Alive) => self.to("exec", if starts { STARTED } else { FAILED }, |system, _| {
                keeper_starts(system);
            }),
            (1, Keeper::Dead) => self.to("no keeper", FAILED, nothing),
            (1, Keeper::Stopped) => self.to("exec", WAITS, |system, memory| {
                send(system, memory, KeeperCall::Start);
            }),
            (STARTED, _) => self.to("started", DONE, |_, memory| {
                memory.container_happened(|state| state.started(1));
                memory.turn = false;
            }),
            (WAITS, Keeper::Alive) => {}
            _ => self.to("failed", DONE, |_, memory| memory.turn = false),
        }
    }

    fn stop(&mut self, step: u8) {
        let reconciled = self.memory.reconciled;
        match step {
            0 if self.memory.container.as_ref().is_some_and(|state| state.needs_stop(reconciled)) => {
                self.to("to be stopped", 1, nothing);
            }
            0 => self.to("nothing to stop", DONE, nothing),
            1 => self.kill(2, DONE),
            _ => self.wait_for_end(DONE),
        }
    }

    fn remove(&mut self, step: u8) {
        match step {
            0 if matches!(self.memory.container, Some(ContainerState::Running { .. })) => {
                self.to("it runs", 1, nothing);
            }
            0 => self.to("it does not run", 3, nothing),
            1 => self.kill(2, 3),
            2 => self.wait_for_end(3),
            3 => {
                let answers = !self.memory.link || self.system.keeper != Keeper::Stopped;
                self.to("forget", if answers { 6 } else { 4 }, forget);
            }
            4 => self.kill(5, 6),
            5 => self.wait_for_end(6),
            6 if self.memory.turn => {}
            6 => self.to("lock", 7, |system, memory| {
                memory.turn = true;
                forget(system, memory);
            }),
            _ => self.to("removed", DONE, |system, memory| {
                system.kill();
                (system.disk_container, system.cgroup, system.exit_file) = (None, false, None);
                (memory.container, memory.container_unwritten, memory.turn) = (None, false, false);
            }),
        }
    }

    fn stop_pod(&mut self, step: u8) {
        match step {
            0 => match &self.memory.pod {
                None | Some(PodState::NotReady { released: true }) => {
                    self.to("released already", DONE, nothing)
                }
                Some(_) => self.to("begins", 1, |_, memory| memory.pod_happened(PodState::stopping)),
            },
            1 if self.memory.creating => {
                if self.system.keeper == Keeper::Alive
                    && self.memory.link
                    && self.system.keeper_phase.is_some()
                {
                    self.to("cancel creation", 1, forget);
                }
            }
            1 if self.memory.container.is_some() && !self.memory.has_ended() => {
                self.to("it runs", 2, nothing)
            }
            1 => self.to("nothing runs", 4, nothing),
            2 => self.kill(3, 4),
            3 => self.wait_for_end(4),
            // The keeper is about to exit: the exit must be on disk before.
            4 if self.memory.container_unwritten => {}
            4 => self.to("release", 5, |system, memory| {
                system.kill();
                (system.keeper, system.keeper_phase, system.pause) = (Keeper::Dead, None, false);
                system.keeper_calls.clear();
                (memory.link, memory.reconciled, memory.exit_event, memory.late_answer) =
                    (false, true, None, false);
            }),
            _ => self.to("released", DONE, |_, memory| memory.pod_happened(PodState::released)),
        }
    }

    fn remove_pod(&mut self, step: u8) {
        match step {
            0 => self.to("stop", 1, |_, memory| {
                memory.operations.entry(Call::StopPod).or_insert(0);
            }),
            1 if self.memory.operations.contains_key(&Call::StopPod) => {}
            1 if self.memory.container.is_some() => self.to("remove the container", 2, |_, memory| {
                memory.operations.entry(Call::Remove).or_insert(0);
            }),
            2 if self.memory.operations.contains_key(&Call::Remove) => {}
            _ => self.to("removed", DONE, |system, memory| {
                (memory.pod, memory.pod_unwritten, system.disk_pod) = (None, false, None);
            }),
        }
    }

    /// Adds a kill of the container, followed by the step `waiting`.
    fn kill(&mut self, waiting: u8, then: u8) {
        match self.memory.container.is_none() || self.memory.has_ended() {
            true => self.to("it has ended", then, nothing),
            false => self.to("kill", waiting, |system, _| system.kill()),
        }
    }

    fn wait_for_end(&mut self, then: u8) {
        if self.memory.container.is_none() || self.memory.has_ended() {
            return self.to("it has ended", then, nothing);
        }
        if !self.memory.link {
            return self.to("the keeper is gone", then, |_, memory| {
                memory.container_happened(|state| state.exited(unknown()));
            });
        }
        // A keeper that answers and has the container will report its exit.
        if self.system.keeper != Keeper::Alive || self.system.keeper_phase.is_none() {
            self.to("it was killed", then, |_, memory| {
                memory.container_happened(|state| state.exited(killed()));
            });
        }
    }
}
