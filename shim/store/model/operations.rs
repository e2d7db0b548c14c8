//! The operations, step by step. Between two steps of one, everything else can happen.

use berth_runtime::wire::Phase;

use super::steps::{Next, changed, forget, keeper_starts, tell};
use super::world::{Call, Keeper, Memory, PID, Process, Told, World, killed, unknown};
use crate::store::{ContainerState, PodState};

/// The step of an operation that is done.
const DONE: u8 = u8::MAX;

/// The next steps of an operation: none where it waits for something else.
pub(super) fn next(world: &World, memory: &Memory, call: Call, step: u8) -> Next {
    let mut at = At { world, memory, call, next: Next::new() };
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

/// Where an operation is.
struct At<'a> {
    world: &'a World,
    memory: &'a Memory,
    call: Call,
    next: Next,
}

fn nothing(_: &mut World, _: &mut Memory) {}

impl At<'_> {
    /// It can go to this step.
    fn to(&mut self, label: &str, step: u8, change: impl Fn(&mut World, &mut Memory)) {
        let call = self.call;
        let after = changed(self.world, self.memory, &|world, memory| {
            match step {
                DONE => drop(memory.operations.remove(&call)),
                step => drop(memory.operations.insert(call, step)),
            }
            change(world, memory);
        });
        self.next.push((label.to_owned(), after));
    }

    fn has_pause(&self) -> bool {
        self.memory.pod.as_ref().is_some_and(|pod| pod.pause().is_some())
    }

    /// The disk may refuse what is intended.
    fn refused_by_disk(&mut self, step: u8) {
        if self.world.budget.refusals > 0 {
            self.to("the disk refuses", step, |world, _| world.budget.refusals -= 1);
        }
    }

    fn create(&mut self, step: u8) {
        const UNDO: u8 = 9;
        let ready = self.has_pause();
        match step {
            0 if !ready || !self.memory.link => self.to("refused", DONE, nothing),
            0 => {
                self.to("intent", 1, |world, memory| {
                    (memory.making, world.cgroup) = (true, true);
                    world.disk_container = Some(ContainerState::Creating);
                });
                self.refused_by_disk(DONE);
            }
            1 | 3 if !ready => self.to("not ready any more", UNDO, nothing),
            1 if self.world.keeper == Keeper::Alive => self.to("first process", 2, |world, _| {
                (world.process, world.knows) = (Process::Gate, Some(Phase::Created));
            }),
            1 => self.to("no answer", UNDO, |world, memory| {
                tell(world, memory, Told::Create);
            }),
            2 => {
                self.to("record", 3, |world, _| {
                    world.disk_container = Some(ContainerState::Creating.created(PID));
                });
                self.refused_by_disk(UNDO);
            }
            3 => self.to("made", DONE, |_, memory| {
                memory.container = Some(ContainerState::Creating.created(PID));
                memory.making = false;
            }),
            _ => self.to("undo", DONE, |world, memory| {
                forget(world, memory);
                world.kill();
                (world.disk_container, world.cgroup, world.exit_file) = (None, false, None);
                memory.making = false;
            }),
        }
    }

    fn start(&mut self, step: u8) {
        const STARTED: u8 = 2;
        const FAILED: u8 = 3;
        /// For the answer of a keeper that is stopped.
        const WAITS: u8 = 5;
        let starts = self.world.knows == Some(Phase::Created) && self.world.process == Process::Gate;
        let may_start = self.memory.container.as_ref().is_some_and(|state| state.may_start().is_ok());
        match (step, self.world.keeper) {
            (0, _) if self.memory.turn => {}
            (0, _) if may_start && self.has_pause() && self.memory.link => {
                self.to("turn", 1, |_, memory| memory.turn = true);
            }
            (0, _) => self.to("refused", DONE, nothing),
            (1, Keeper::Alive) => self.to("exec", if starts { STARTED } else { FAILED }, |world, _| {
                keeper_starts(world);
            }),
            (1, Keeper::Dead) => self.to("no keeper", FAILED, nothing),
            (1, Keeper::Stopped) => self.to("exec", WAITS, |world, memory| {
                tell(world, memory, Told::Start);
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
        let spoken = self.memory.spoken;
        match step {
            0 if self.memory.container.as_ref().is_some_and(|state| state.is_to_be_stopped(spoken)) => {
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
                let answers = !self.memory.link || self.world.keeper != Keeper::Stopped;
                self.to("forget", if answers { 6 } else { 4 }, forget);
            }
            4 => self.kill(5, 6),
            5 => self.wait_for_end(6),
            6 if self.memory.turn => {}
            6 => self.to("turn", 7, |world, memory| {
                memory.turn = true;
                forget(world, memory);
            }),
            _ => self.to("removed", DONE, |world, memory| {
                world.kill();
                (world.disk_container, world.cgroup, world.exit_file) = (None, false, None);
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
            1 if self.memory.making => {
                if self.world.keeper == Keeper::Alive && self.memory.link && self.world.knows.is_some() {
                    self.to("what is made is given up", 1, forget);
                }
            }
            1 if self.memory.container.is_some() && !self.memory.has_ended() => {
                self.to("it runs", 2, nothing)
            }
            1 => self.to("nothing runs", 4, nothing),
            2 => self.kill(3, 4),
            3 => self.wait_for_end(4),
            // The last who knows how the container ended is about to go.
            4 if self.memory.container_unwritten => {}
            4 => self.to("release", 5, |world, memory| {
                world.kill();
                (world.keeper, world.knows, world.pause) = (Keeper::Dead, None, false);
                world.told.clear();
                (memory.link, memory.spoken, memory.news, memory.late) = (false, true, None, false);
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
            _ => self.to("removed", DONE, |world, memory| {
                (memory.pod, memory.pod_unwritten, world.disk_pod) = (None, false, None);
            }),
        }
    }

    /// Kills the container, and waits for its end with the step `waiting`.
    fn kill(&mut self, waiting: u8, then: u8) {
        match self.memory.container.is_none() || self.memory.has_ended() {
            true => self.to("it has ended", then, nothing),
            false => self.to("kill", waiting, |world, _| world.kill()),
        }
    }

    fn wait_for_end(&mut self, then: u8) {
        if self.memory.container.is_none() || self.memory.has_ended() {
            return self.to("it has ended", then, nothing);
        }
        if !self.memory.link {
            return self.to("it is lost", then, |_, memory| {
                memory.container_happened(|state| state.exited(unknown()));
            });
        }
        // A keeper that answers and knows it will tell its end.
        if self.world.keeper != Keeper::Alive || self.world.knows.is_none() {
            self.to("it was killed", then, |_, memory| {
                memory.container_happened(|state| state.exited(killed()));
            });
        }
    }
}
