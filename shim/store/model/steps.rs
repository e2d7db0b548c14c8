//! Everything that can happen next.

use berth_runtime::wire::Phase;

use super::world::{Call, Keeper, Memory, OWN, PID, Process, Told, World, killed, record, unknown};
use crate::store::{ContainerState, Exit, Found, PodState, Seen};

type Next = Vec<(String, World)>;

/// The step of an operation that is done.
const DONE: u8 = u8::MAX;

/// What happens without anybody from outside: steps of operations, the keeper's own work, news, late writes.
pub(super) fn by_themselves(world: &World) -> Next {
    let mut next = Next::new();
    let Some(memory) = &world.daemon else {
        next.push(("the daemon starts".to_owned(), start_daemon(world)));
        return next;
    };
    let mut may = |what: &str, change: &dyn Fn(&mut World, &mut Memory)| {
        next.push((what.to_owned(), changed(world, memory, change)));
    };
    let unheard = matches!(world.knows, Some(Phase::Created | Phase::Running { .. }));
    if let (Keeper::Alive, Process::Gone(code), true) = (world.keeper, world.process, unheard) {
        may("the keeper reaps", &move |world, memory| {
            world.knows = Some(Phase::Exited(record(code)));
            world.exit_file = Some(record(code));
            if memory.link && memory.spoken {
                memory.news = Some(record(code));
            }
        });
    }
    if memory.news.is_some() {
        may("the news comes", &|world, memory| {
            let news = memory.news.take().unwrap();
            memory.container_happened(|state| state.exited(Exit::from_record(&news)));
            if memory.container.is_some() {
                world.kill();
            }
        });
    }
    if memory.link && world.keeper == Keeper::Alive && (!memory.spoken || memory.late) {
        may("the keeper's word is taken over", &take_over);
    }
    if memory.link && world.keeper == Keeper::Dead {
        may("the end of the keeper is noticed", &keeper_ended);
    }
    if memory.link && memory.spoken && !world.pause && world.keeper == Keeper::Alive {
        if memory.pod != memory.pod.as_ref().map(PodState::pause_ended) {
            may("the end of the pause is noticed", &|_, memory| memory.pod_happened(PodState::pause_ended));
        }
    }
    if memory.pod_unwritten {
        may("the pod is written", &|world, memory| {
            memory.pod_unwritten = false;
            world.disk_pod.clone_from(&memory.pod);
        });
    }
    if memory.container_unwritten {
        may("the container is written", &|world, memory| {
            memory.container_unwritten = false;
            world.disk_container.clone_from(&memory.container);
        });
    }
    for (call, step) in &memory.operations {
        for (label, after) in operation(world, memory, *call, *step) {
            next.push((format!("{call:?} {step}: {label}"), after));
        }
    }
    next
}

/// Calls of the client, and what breaks.
pub(super) fn from_outside(world: &World) -> Next {
    let mut next = Next::new();
    if world.process == Process::Runs {
        let mut after = world.clone();
        after.process = Process::Gone(OWN);
        next.push(("the process ends".to_owned(), after));
    }
    let mut fault = |left: u8, what: &str, change: &dyn Fn(&mut World)| {
        if left > 0 {
            let mut after = world.clone();
            change(&mut after);
            next.push((what.to_owned(), after));
        }
    };
    let budget = world.budget;
    if world.daemon.is_some() {
        fault(budget.crashes, "the daemon is killed", &|world| {
            world.budget.crashes -= 1;
            world.daemon = None;
        });
    }
    if world.keeper != Keeper::Dead {
        fault(budget.keeper_kills, "the keeper is killed", &|world| {
            world.budget.keeper_kills -= 1;
            (world.keeper, world.was_killed, world.knows) = (Keeper::Dead, true, None);
            world.told.clear();
        });
    }
    if world.keeper == Keeper::Alive {
        fault(budget.keeper_stops, "the keeper is stopped", &|world| {
            world.budget.keeper_stops -= 1;
            (world.keeper, world.was_stopped) = (Keeper::Stopped, true);
        });
    }
    if world.pause && world.keeper != Keeper::Dead {
        fault(budget.pause_kills, "the pause is killed", &|world| {
            world.budget.pause_kills -= 1;
            world.pause = false;
        });
    }
    if world.keeper == Keeper::Stopped {
        fault(1, "the keeper goes on", &goes_on);
    }
    next.extend(calls(world));
    next
}

fn calls(world: &World) -> Next {
    let Some(memory) = &world.daemon else { return Next::new() };
    let (pod, container) = (memory.pod.is_some(), memory.container.is_some());
    let mut next = Next::new();
    let mut call = |call: Call, there: bool, left: &dyn Fn(&mut World) -> &mut u8| {
        let mut after = world.clone();
        let left = left(&mut after);
        if there && *left > 0 && !memory.operations.contains_key(&call) {
            *left -= 1;
            after.daemon.as_mut().unwrap().operations.insert(call, 0);
            next.push((format!("{call:?} is called"), after));
        }
    };
    call(Call::Create, pod && !container, &|world| &mut world.budget.create);
    call(Call::Start, container, &|world| &mut world.budget.start);
    call(Call::Stop, container, &|world| &mut world.budget.stop);
    call(Call::Remove, container, &|world| &mut world.budget.remove);
    call(Call::StopPod, pod, &|world| &mut world.budget.stop_pod);
    call(Call::RemovePod, pod, &|world| &mut world.budget.remove_pod);
    next
}

fn changed(world: &World, memory: &Memory, change: &dyn Fn(&mut World, &mut Memory)) -> World {
    let (mut world, mut memory) = (world.clone(), memory.clone());
    change(&mut world, &mut memory);
    world.daemon = Some(memory);
    world
}

/// A stopped keeper goes on: it does what it was told meanwhile.
fn goes_on(world: &mut World) {
    world.keeper = Keeper::Alive;
    for told in std::mem::take(&mut world.told) {
        match told {
            // Without its cgroup a process cannot be cloned into it.
            Told::Create if world.cgroup => {
                (world.process, world.knows) = (Process::Gate, Some(Phase::Created));
            }
            Told::Create => {}
            Told::Start => {
                let started = keeper_starts(world);
                let Some(memory) = &mut world.daemon else { continue };
                match memory.operations.get_mut(&Call::Start) {
                    Some(step) if *step == 5 => *step = if started { 2 } else { 3 },
                    _ => memory.late |= started,
                }
            }
            Told::Forget => keeper_forgets(world),
        }
    }
}

fn keeper_starts(world: &mut World) -> bool {
    let starts = world.knows == Some(Phase::Created) && world.process == Process::Gate;
    if starts {
        (world.process, world.knows) = (Process::Runs, Some(Phase::Running { started_at: 1 }));
    }
    starts
}

fn keeper_forgets(world: &mut World) {
    if world.knows.take().is_some() {
        world.was_forgotten = true;
        world.kill();
    }
}

/// The keeper is told, if there is a link to it; whether it answers.
fn tell(world: &mut World, memory: &Memory, told: Told) -> bool {
    match world.keeper {
        _ if !memory.link => false,
        Keeper::Dead => false,
        Keeper::Stopped => {
            world.told.push(told);
            false
        }
        Keeper::Alive => {
            if told == Told::Forget {
                keeper_forgets(world);
            }
            true
        }
    }
}

fn forget(world: &mut World, memory: &mut Memory) {
    let _answers = tell(world, memory, Told::Forget);
}

fn note_end(world: &mut World, memory: &mut Memory) {
    let exit = world.exit_file.as_ref().map_or_else(unknown, Exit::from_record);
    memory.container_happened(|state| state.exited(exit));
    world.kill();
}

fn start_daemon(world: &World) -> World {
    let mut world = world.clone();
    let reachable = world.keeper != Keeper::Dead;
    let found = world.disk_pod.as_ref().map(|pod| pod.found(reachable));
    let mut memory = Memory::of(world.disk_pod.clone());
    match found {
        Some(Found::Follow) => (memory.link, memory.spoken) = (true, false),
        Some(Found::Ended) => memory.pod_happened(PodState::stopping),
        // Its keeper is ended with all that runs in the pod.
        Some(Found::TakeBack | Found::Released) | None => {
            world.kill();
            (world.keeper, world.knows) = (Keeper::Dead, None);
            world.told.clear();
        }
    }
    match world.disk_container.clone() {
        Some(ContainerState::Creating) => {
            world.kill();
            (world.disk_container, world.cgroup, world.exit_file) = (None, false, None);
        }
        Some(_) if memory.pod.is_none() => {
            world.kill();
            (world.disk_container, world.cgroup, world.exit_file) = (None, false, None);
        }
        found => memory.container = found,
    }
    if memory.container.is_some() && !memory.link && !memory.has_ended() {
        note_end(&mut world, &mut memory);
    }
    if memory.pod.as_ref().is_some_and(PodState::is_being_released) {
        memory.operations.insert(Call::StopPod, 0);
    }
    world.daemon = Some(memory);
    world
}

fn take_over(world: &mut World, memory: &mut Memory) {
    memory.spoken = true;
    memory.late = false;
    if let Some(state) = memory.container.clone() {
        match state.seen(world.knows.as_ref()) {
            Seen::AsKnown => {}
            Seen::Running(at) => memory.container_happened(|state| state.started(at)),
            Seen::Ended(record) => {
                memory.container_happened(|state| state.exited(Exit::from_record(&record)));
                world.kill();
            }
            Seen::Lost => note_end(world, memory),
        }
    } else if !memory.making {
        keeper_forgets(world);
    }
}

fn keeper_ended(world: &mut World, memory: &mut Memory) {
    memory.link = false;
    memory.spoken = true;
    memory.news = None;
    memory.late = false;
    let was_up = memory.pod.as_ref().is_some_and(PodState::needs_keeper);
    if was_up {
        memory.pod_happened(PodState::stopping);
    }
    if memory.container.is_some() && !memory.has_ended() {
        note_end(world, memory);
    }
    if was_up {
        memory.operations.entry(Call::StopPod).or_insert(0);
    }
}

/// The next steps of an operation: none where it waits for something else.
fn operation(world: &World, memory: &Memory, call: Call, step: u8) -> Next {
    let mut next = Next::new();
    let mut to = |label: &str, step: u8, change: &dyn Fn(&mut World, &mut Memory)| {
        let after = changed(world, memory, &|world, memory| {
            match step {
                DONE => drop(memory.operations.remove(&call)),
                step => drop(memory.operations.insert(call, step)),
            }
            change(world, memory);
        });
        next.push((label.to_owned(), after));
    };
    let nothing = |_: &mut World, _: &mut Memory| {};
    let has_pause = memory.pod.as_ref().is_some_and(|pod| pod.pause().is_some());
    match (call, step) {
        (Call::Create, 0) if !has_pause || !memory.link => to("refused", DONE, &nothing),
        (Call::Create, 0) => {
            to("intent", 1, &|world, memory| {
                (memory.making, world.cgroup) = (true, true);
                world.disk_container = Some(ContainerState::Creating);
            });
            if world.budget.refusals > 0 {
                to("the disk refuses", DONE, &|world, _| world.budget.refusals -= 1);
            }
        }
        (Call::Create, 1) if !has_pause => to("not ready any more", 9, &nothing),
        (Call::Create, 1) => match world.keeper {
            Keeper::Alive => to("first process", 2, &|world, _| {
                (world.process, world.knows) = (Process::Gate, Some(Phase::Created));
            }),
            _ => to("no answer", 9, &|world, memory| {
                let _answers = tell(world, memory, Told::Create);
            }),
        },
        (Call::Create, 2) => {
            to("record", 3, &|world, _| world.disk_container = Some(ContainerState::Creating.created(PID)));
            if world.budget.refusals > 0 {
                to("the disk refuses", 9, &|world, _| world.budget.refusals -= 1);
            }
        }
        (Call::Create, 3) if has_pause => to("made", DONE, &|_, memory| {
            memory.container = Some(ContainerState::Creating.created(PID));
            memory.making = false;
        }),
        (Call::Create, 3) => to("not ready any more", 9, &nothing),
        (Call::Create, _) => to("undo", DONE, &|world, memory| {
            tell(world, memory, Told::Forget);
            world.kill();
            (world.disk_container, world.cgroup, world.exit_file) = (None, false, None);
            memory.making = false;
        }),

        (Call::Start, 0) if memory.turn => {}
        (Call::Start, 0) => match &memory.container {
            Some(state) if state.may_start().is_ok() && has_pause && memory.link => {
                to("turn", 1, &|_, memory| memory.turn = true);
            }
            _ => to("refused", DONE, &nothing),
        },
        (Call::Start, 1) if world.keeper == Keeper::Alive => {
            let starts = world.knows == Some(Phase::Created) && world.process == Process::Gate;
            to("exec", if starts { 2 } else { 3 }, &|world, _| {
                let _starts = keeper_starts(world);
            });
        }
        (Call::Start, 1) => to("exec", if world.keeper == Keeper::Dead { 3 } else { 5 }, &|world, memory| {
            tell(world, memory, Told::Start);
        }),
        (Call::Start, 2) => to("started", DONE, &|_, memory| {
            memory.container_happened(|state| state.started(1));
            memory.turn = false;
        }),
        (Call::Start, 5) if world.keeper == Keeper::Alive => {}
        (Call::Start, _) => to("failed", DONE, &|_, memory| memory.turn = false),

        (Call::Stop, 0) => match memory.container.as_ref().is_some_and(|s| s.is_to_be_stopped(memory.spoken))
        {
            true => to("to be stopped", 1, &nothing),
            false => to("nothing to stop", DONE, &nothing),
        },
        (Call::Stop, _) => kill(world, memory, step, DONE, &mut to),

        (Call::Remove, 0) => match memory.container {
            Some(ContainerState::Running { .. }) => to("it runs", 1, &nothing),
            _ => to("it does not run", 3, &nothing),
        },
        (Call::Remove, 1 | 2) => kill(world, memory, step, 3, &mut to),
        (Call::Remove, 3) => {
            let answers = !memory.link || world.keeper != Keeper::Stopped;
            to("forget", if answers { 6 } else { 4 }, &forget);
        }
        (Call::Remove, 4 | 5) => kill(world, memory, step - 3, 6, &mut |label, step, change| {
            to(label, if step == 6 { 6 } else { step + 3 }, change);
        }),
        (Call::Remove, 6) if memory.turn => {}
        (Call::Remove, 6) => to("turn", 7, &|world, memory| {
            memory.turn = true;
            tell(world, memory, Told::Forget);
        }),
        (Call::Remove, _) => to("removed", DONE, &|world, memory| {
            world.kill();
            (world.disk_container, world.cgroup, world.exit_file) = (None, false, None);
            (memory.container, memory.container_unwritten, memory.turn) = (None, false, false);
        }),

        (Call::StopPod, 0) => match &memory.pod {
            None | Some(PodState::NotReady { released: true }) => to("released already", DONE, &nothing),
            Some(_) => to("begins", 1, &|_, memory| memory.pod_happened(PodState::stopping)),
        },
        (Call::StopPod, 1) if memory.making => {
            if world.keeper == Keeper::Alive && memory.link && world.knows.is_some() {
                to("what is made is given up", 1, &forget);
            }
        }
        (Call::StopPod, 1) => match memory.container.is_some() && !memory.has_ended() {
            true => to("kill", 2, &nothing),
            false => to("nothing runs", 5, &nothing),
        },
        (Call::StopPod, 2 | 3) => {
            kill(world, memory, step - 1, 5, &mut |label, step, change| {
                to(label, if step == 5 { 5 } else { step + 1 }, change);
            });
        }
        // The last who knows how the container ended is about to go.
        (Call::StopPod, 5) if memory.container_unwritten => {}
        (Call::StopPod, 5) => to("release", 6, &|world, memory| {
            world.kill();
            (world.keeper, world.knows, world.pause) = (Keeper::Dead, None, false);
            world.told.clear();
            (memory.link, memory.spoken, memory.news, memory.late) = (false, true, None, false);
        }),
        (Call::StopPod, _) => to("released", DONE, &|_, memory| memory.pod_happened(PodState::released)),

        (Call::RemovePod, 0) => to("stop", 1, &|_, memory| {
            memory.operations.entry(Call::StopPod).or_insert(0);
        }),
        (Call::RemovePod, 1) if memory.operations.contains_key(&Call::StopPod) => {}
        (Call::RemovePod, 1) => match memory.container.is_some() {
            true => to("remove the container", 2, &|_, memory| {
                memory.operations.entry(Call::Remove).or_insert(0);
            }),
            false => to("no container", 3, &nothing),
        },
        (Call::RemovePod, 2) if memory.operations.contains_key(&Call::Remove) => {}
        (Call::RemovePod, _) => to("removed", DONE, &|world, memory| {
            (memory.pod, memory.pod_unwritten, world.disk_pod) = (None, false, None);
        }),
    }
    next
}

type To<'a> = dyn FnMut(&str, u8, &dyn Fn(&mut World, &mut Memory)) + 'a;

/// Killing the container and waiting for its end: steps 1 and 2 of whoever does it, which then goes on at `then`.
fn kill(world: &World, memory: &Memory, step: u8, then: u8, to: &mut To<'_>) {
    if memory.container.is_none() || memory.has_ended() {
        return to("it has ended", then, &|_, _| ());
    }
    if step == 1 {
        return to("kill", 2, &|world, _| world.kill());
    }
    if !memory.link {
        return to("it is lost", then, &|_, memory| {
            memory.container_happened(|state| state.exited(unknown()))
        });
    }
    // A keeper that answers and knows it will tell its end.
    if world.keeper != Keeper::Alive || world.knows.is_none() {
        to("it was killed", then, &|_, memory| memory.container_happened(|state| state.exited(killed())));
    }
}
