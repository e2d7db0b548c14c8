//! All steps that can happen next.

use berth_runtime::wire::Phase;

use super::operations;
use super::world::{Call, EXIT_CODE, Keeper, KeeperCall, Memory, Process, System, killed, record, unknown};
use crate::store::{ContainerState, Exit, KeeperReport, PodRecovery, PodState};

pub(super) type Next = Vec<(String, System)>;

/// Steps inside the system: of operations and the keeper, handling of events, late writes.
pub(super) fn internal(system: &System) -> Next {
    let mut next = Next::new();
    let Some(memory) = &system.daemon else {
        next.push(("the daemon starts".to_owned(), start_daemon(system)));
        return next;
    };
    let mut step = |what: &str, change: &dyn Fn(&mut System, &mut Memory)| {
        next.push((what.to_owned(), changed(system, memory, change)));
    };
    let exit_unseen = matches!(system.keeper_phase, Some(Phase::Created | Phase::Running { .. }));
    if let (Keeper::Alive, Process::Gone(code), true) = (system.keeper, system.process, exit_unseen) {
        step("the keeper reaps", &move |system, memory| {
            system.keeper_phase = Some(Phase::Exited(record(code)));
            system.exit_file = Some(record(code));
            if memory.link && memory.reconciled {
                memory.exit_event = Some(record(code));
            }
        });
    }
    if memory.exit_event.is_some() {
        step("the exit is handled", &|system, memory| {
            let exit_event = memory.exit_event.take().unwrap();
            memory.container_happened(|state| state.exited(Exit::from_record(&exit_event)));
            if memory.container.is_some() {
                system.kill();
            }
        });
    }
    if memory.link && system.keeper == Keeper::Alive && (!memory.reconciled || memory.late_answer) {
        step("the keeper's state is taken over", &take_over);
    }
    if memory.link && system.keeper == Keeper::Dead {
        step("the keeper's end is noticed", &keeper_ended);
    }
    let pause_unnoticed = memory.pod != memory.pod.as_ref().map(PodState::pause_ended);
    if memory.link && memory.reconciled && !system.pause && system.keeper == Keeper::Alive && pause_unnoticed
    {
        step("the end of the pause is noticed", &|_, memory| memory.pod_happened(PodState::pause_ended));
    }
    if memory.pod_unwritten {
        step("the pod is written", &|system, memory| {
            memory.pod_unwritten = false;
            system.disk_pod.clone_from(&memory.pod);
        });
    }
    if memory.container_unwritten {
        step("the container is written", &|system, memory| {
            memory.container_unwritten = false;
            system.disk_container.clone_from(&memory.container);
        });
    }
    for (call, step) in &memory.operations {
        for (label, after) in operations::next(system, memory, *call, *step) {
            next.push((format!("{call:?} {step}: {label}"), after));
        }
    }
    next
}

/// Calls of the client, and faults.
pub(super) fn external(system: &System) -> Next {
    let mut next = Next::new();
    if system.process == Process::Runs {
        let mut after = system.clone();
        after.process = Process::Gone(EXIT_CODE);
        next.push(("the process ends".to_owned(), after));
    }
    let mut fault = |left: u8, what: &str, change: &dyn Fn(&mut System)| {
        if left > 0 {
            let mut after = system.clone();
            change(&mut after);
            next.push((what.to_owned(), after));
        }
    };
    let budget = system.budget;
    if system.daemon.is_some() {
        fault(budget.crashes, "the daemon is killed", &|system| {
            system.budget.crashes -= 1;
            system.daemon = None;
        });
    }
    if system.keeper != Keeper::Dead {
        fault(budget.keeper_kills, "the keeper is killed", &|system| {
            system.budget.keeper_kills -= 1;
            (system.keeper, system.was_killed, system.keeper_phase) = (Keeper::Dead, true, None);
            system.keeper_calls.clear();
        });
    }
    if system.keeper == Keeper::Alive {
        fault(budget.keeper_stops, "the keeper is stopped", &|system| {
            system.budget.keeper_stops -= 1;
            (system.keeper, system.was_stopped) = (Keeper::Stopped, true);
        });
    }
    if system.pause && system.keeper != Keeper::Dead {
        fault(budget.pause_kills, "the pause is killed", &|system| {
            system.budget.pause_kills -= 1;
            system.pause = false;
        });
    }
    if system.keeper == Keeper::Stopped {
        fault(1, "the keeper continues", &keeper_continues);
    }
    next.extend(calls(system));
    next
}

fn calls(system: &System) -> Next {
    let Some(memory) = &system.daemon else { return Next::new() };
    let (pod, container) = (memory.pod.is_some(), memory.container.is_some());
    let mut next = Next::new();
    let mut call = |call: Call, there: bool, left: &dyn Fn(&mut System) -> &mut u8| {
        let mut after = system.clone();
        let left = left(&mut after);
        if there && *left > 0 && !memory.operations.contains_key(&call) {
            *left -= 1;
            after.daemon.as_mut().unwrap().operations.insert(call, 0);
            next.push((format!("{call:?} is called"), after));
        }
    };
    call(Call::Create, pod && !container, &|system| &mut system.budget.create);
    call(Call::Start, container, &|system| &mut system.budget.start);
    call(Call::Stop, container, &|system| &mut system.budget.stop);
    call(Call::Remove, container, &|system| &mut system.budget.remove);
    call(Call::StopPod, pod, &|system| &mut system.budget.stop_pod);
    call(Call::RemovePod, pod, &|system| &mut system.budget.remove_pod);
    next
}

pub(super) fn changed(system: &System, memory: &Memory, change: &dyn Fn(&mut System, &mut Memory)) -> System {
    let (mut system, mut memory) = (system.clone(), memory.clone());
    change(&mut system, &mut memory);
    system.daemon = Some(memory);
    system
}

/// A stopped keeper continues and handles the queued calls.
fn keeper_continues(system: &mut System) {
    system.keeper = Keeper::Alive;
    for call in std::mem::take(&mut system.keeper_calls) {
        match call {
            // Without its cgroup the process cannot be cloned into it.
            KeeperCall::Create if system.cgroup => {
                (system.process, system.keeper_phase) = (Process::Gate, Some(Phase::Created));
            }
            KeeperCall::Create => {}
            KeeperCall::Start => {
                let started = keeper_starts(system);
                let Some(memory) = &mut system.daemon else { continue };
                match memory.operations.get_mut(&Call::Start) {
                    Some(step) if *step == 5 => *step = if started { 2 } else { 3 },
                    _ => memory.late_answer |= started,
                }
            }
            KeeperCall::Forget => keeper_forgets(system),
        }
    }
}

pub(super) fn keeper_starts(system: &mut System) -> bool {
    let starts = system.keeper_phase == Some(Phase::Created) && system.process == Process::Gate;
    if starts {
        (system.process, system.keeper_phase) = (Process::Runs, Some(Phase::Running { started_at: 1 }));
    }
    starts
}

fn keeper_forgets(system: &mut System) {
    if system.keeper_phase.take().is_some() {
        system.was_forgotten = true;
        system.kill();
    }
}

/// Sends a call to the keeper, if there is a link. Returns whether it answers.
pub(super) fn send(system: &mut System, memory: &Memory, call: KeeperCall) -> bool {
    match system.keeper {
        _ if !memory.link => false,
        Keeper::Dead => false,
        Keeper::Stopped => {
            system.keeper_calls.push(call);
            false
        }
        Keeper::Alive => {
            if call == KeeperCall::Forget {
                keeper_forgets(system);
            }
            true
        }
    }
}

pub(super) fn forget(system: &mut System, memory: &mut Memory) {
    let _answers = send(system, memory, KeeperCall::Forget);
}

fn note_end(system: &mut System, memory: &mut Memory) {
    let exit = system.exit_file.as_ref().map_or_else(unknown, Exit::from_record);
    memory.container_happened(|state| state.exited(exit));
    system.kill();
}

fn start_daemon(system: &System) -> System {
    let mut system = system.clone();
    let reachable = system.keeper != Keeper::Dead;
    let recovery = system.disk_pod.as_ref().map(|pod| pod.recovery(reachable));
    let mut memory = Memory::of(system.disk_pod.clone());
    match recovery {
        Some(PodRecovery::Follow) => (memory.link, memory.reconciled) = (true, false),
        Some(PodRecovery::Release) => memory.pod_happened(PodState::stopping),
        // Its keeper is ended, with everything that runs in the pod.
        Some(PodRecovery::Undo | PodRecovery::Released) | None => {
            system.kill();
            (system.keeper, system.keeper_phase) = (Keeper::Dead, None);
            system.keeper_calls.clear();
        }
    }
    match system.disk_container.clone() {
        Some(ContainerState::Creating) => {
            system.kill();
            (system.disk_container, system.cgroup, system.exit_file) = (None, false, None);
        }
        Some(_) if memory.pod.is_none() => {
            system.kill();
            (system.disk_container, system.cgroup, system.exit_file) = (None, false, None);
        }
        container => memory.container = container,
    }
    if memory.container.is_some() && !memory.link && !memory.has_ended() {
        note_end(&mut system, &mut memory);
    }
    if memory.pod.as_ref().is_some_and(PodState::is_being_released) {
        memory.operations.insert(Call::StopPod, 0);
    }
    system.daemon = Some(memory);
    system
}

fn take_over(system: &mut System, memory: &mut Memory) {
    memory.reconciled = true;
    memory.late_answer = false;
    if let Some(state) = memory.container.clone() {
        match state.compare(system.keeper_phase.as_ref()) {
            KeeperReport::Unchanged => {}
            KeeperReport::Running(at) => memory.container_happened(|state| state.started(at)),
            KeeperReport::Ended(record) => {
                memory.container_happened(|state| state.exited(Exit::from_record(&record)));
                system.kill();
            }
            KeeperReport::Forgotten => {
                let exit = system.exit_file.as_ref().map_or_else(killed, Exit::from_record);
                memory.container_happened(|state| state.exited(exit));
                system.kill();
            }
        }
    } else if !memory.creating {
        keeper_forgets(system);
    }
}

fn keeper_ended(system: &mut System, memory: &mut Memory) {
    memory.link = false;
    memory.reconciled = true;
    memory.exit_event = None;
    memory.late_answer = false;
    let was_up = memory.pod.as_ref().is_some_and(PodState::needs_keeper);
    if was_up {
        memory.pod_happened(PodState::stopping);
    }
    if memory.container.is_some() && !memory.has_ended() {
        note_end(system, memory);
    }
    if was_up {
        memory.operations.entry(Call::StopPod).or_insert(0);
    }
}
