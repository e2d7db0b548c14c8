//! Everything that can happen next.

use berth_runtime::wire::Phase;

use super::operations;
use super::world::{Call, Keeper, Memory, OWN, Process, Told, World, killed, record, unknown};
use crate::store::{ContainerState, Exit, Found, PodState, Seen};

pub(super) type Next = Vec<(String, World)>;

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
    let pause_unnoticed = memory.pod != memory.pod.as_ref().map(PodState::pause_ended);
    if memory.link && memory.spoken && !world.pause && world.keeper == Keeper::Alive && pause_unnoticed {
        may("the end of the pause is noticed", &|_, memory| memory.pod_happened(PodState::pause_ended));
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
        for (label, after) in operations::next(world, memory, *call, *step) {
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

pub(super) fn changed(world: &World, memory: &Memory, change: &dyn Fn(&mut World, &mut Memory)) -> World {
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

pub(super) fn keeper_starts(world: &mut World) -> bool {
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
pub(super) fn tell(world: &mut World, memory: &Memory, told: Told) -> bool {
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

pub(super) fn forget(world: &mut World, memory: &mut Memory) {
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
            Seen::Forgotten => {
                let exit = world.exit_file.as_ref().map_or_else(killed, Exit::from_record);
                memory.container_happened(|state| state.exited(exit));
                world.kill();
            }
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
