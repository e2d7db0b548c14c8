//! The modelled system: processes, the disk, and a daemon's memory.

use std::collections::BTreeMap;

use berth_runtime::wire::{ExitRecord, Phase};

use crate::store::{ContainerState, Exit, PodState};

/// Pids of the pause and the container's process; arbitrary.
const PAUSE: i32 = 2;
pub(super) const PID: i32 = 3;

/// Exit codes of a process that exits by itself, of one that is killed, and of an unobserved exit.
pub(super) const EXIT_CODE: i32 = 7;
pub(super) const KILLED: i32 = 137;
const UNKNOWN: i32 = 255;

/// How often each external event may still happen.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) struct Budget {
    pub(super) create: u8,
    pub(super) start: u8,
    pub(super) stop: u8,
    pub(super) remove: u8,
    pub(super) stop_pod: u8,
    pub(super) remove_pod: u8,
    pub(super) crashes: u8,
    pub(super) keeper_kills: u8,
    pub(super) keeper_stops: u8,
    pub(super) pause_kills: u8,
    /// Failed writes of an intent.
    pub(super) refusals: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Keeper {
    Alive,
    /// After SIGSTOP: it handles no calls, and handles the queued ones when it continues.
    Stopped,
    Dead,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Process {
    None,
    Gate,
    Runs,
    Gone(i32),
}

/// A call that a stopped keeper handles when it continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum KeeperCall {
    Create,
    Start,
    Forget,
}

/// A call of the CRI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Call {
    Create,
    Start,
    Stop,
    Remove,
    StopPod,
    RemovePod,
}

/// The memory of a daemon.
#[derive(Clone, Debug, Hash)]
pub(super) struct Memory {
    pub(super) pod: Option<PodState>,
    pub(super) container: Option<ContainerState>,
    pub(super) link: bool,
    /// The keeper's state was taken over.
    pub(super) reconciled: bool,
    pub(super) creating: bool,
    /// Start or Remove holds the container's lock.
    pub(super) turn: bool,
    pub(super) pod_unwritten: bool,
    pub(super) container_unwritten: bool,
    /// An exit that the keeper has reported and the daemon has not handled.
    pub(super) exit_event: Option<ExitRecord>,
    /// The keeper has answered a call without a caller.
    pub(super) late_answer: bool,
    /// The operations in progress, with the step that each is at.
    pub(super) operations: BTreeMap<Call, u8>,
}

#[derive(Clone, Debug, Hash)]
pub(super) struct System {
    pub(super) budget: Budget,
    pub(super) keeper: Keeper,
    pub(super) pause: bool,
    pub(super) process: Process,
    /// The phase of the container in the keeper; none if the keeper does not have it.
    pub(super) keeper_phase: Option<Phase>,
    pub(super) keeper_calls: Vec<KeeperCall>,
    pub(super) cgroup: bool,
    pub(super) exit_file: Option<ExitRecord>,
    pub(super) disk_pod: Option<PodState>,
    pub(super) disk_container: Option<ContainerState>,
    pub(super) daemon: Option<Memory>,
    /// The keeper was killed or stopped at some point: then the exit may stay unknown or be a guess.
    pub(super) was_killed: bool,
    pub(super) was_stopped: bool,
    /// The keeper was asked to forget the container, which kills it. If it had just exited, its exit code is
    /// lost.
    pub(super) was_forgotten: bool,
}

pub(super) fn record(code: i32) -> ExitRecord {
    ExitRecord { code, signal: None, oom_killed: false, started_at: 1, finished_at: 2, failure: None }
}

/// An exit that was not observed, with the time of every other exit in the model.
pub(super) fn unknown() -> Exit {
    Exit { finished_at: 2, ..Exit::unknown(1, "") }
}

pub(super) fn killed() -> Exit {
    Exit { finished_at: 2, ..Exit::killed(1, "") }
}

impl System {
    /// A ready pod without a container.
    pub(super) fn new(budget: Budget) -> Self {
        let ready = PodState::Creating.ready(PAUSE);
        Self {
            budget,
            keeper: Keeper::Alive,
            pause: true,
            process: Process::None,
            keeper_phase: None,
            keeper_calls: Vec::new(),
            cgroup: false,
            exit_file: None,
            disk_pod: Some(ready.clone()),
            disk_container: None,
            daemon: Some(Memory { link: true, ..Memory::of(Some(ready)) }),
            was_killed: false,
            was_stopped: false,
            was_forgotten: false,
        }
    }

    pub(super) fn runs(&self) -> bool {
        matches!(self.process, Process::Gate | Process::Runs)
    }

    /// Kills everything in the cgroup.
    pub(super) fn kill(&mut self) {
        if self.runs() {
            self.process = Process::Gone(KILLED);
        }
    }

    /// Returns the violated invariant, if any. `at_rest`: no internal step is possible.
    pub(super) fn violation(&self, at_rest: bool) -> Option<String> {
        let Some(memory) = &self.daemon else { return None };
        self.exit_code_violation(memory).or_else(|| at_rest.then(|| self.violation_at_rest(memory))?)
    }

    fn exit_code_violation(&self, memory: &Memory) -> Option<String> {
        let Some(ContainerState::Exited(exit)) = &memory.container else { return None };
        let right = match exit.code {
            code if self.process == Process::Gone(code) => true,
            UNKNOWN => self.was_killed,
            // Assumed to be killed: its keeper does not answer.
            KILLED => self.was_stopped || self.was_killed || self.was_forgotten,
            _ => false,
        };
        (!right).then(|| {
            format!("the reported exit code is {}, but the process is {:?}", exit.code, self.process)
        })
    }

    fn violation_at_rest(&self, memory: &Memory) -> Option<String> {
        if let Some((call, step)) = memory.operations.first_key_value() {
            return Some(format!("{call:?} is stuck at step {step}"));
        }
        if self.keeper == Keeper::Stopped {
            return None;
        }
        let process = match &memory.container {
            Some(ContainerState::Creating) => {
                return Some("a container is creating without an operation".to_owned());
            }
            Some(ContainerState::Created { .. }) => Process::Gate,
            Some(ContainerState::Running { .. }) => Process::Runs,
            Some(ContainerState::Exited(_)) | None => match self.process {
                Process::Gate | Process::Runs => {
                    return Some("a process runs that is not reported".to_owned());
                }
                gone => gone,
            },
        };
        if process != self.process {
            return Some(format!(
                "the reported state is {:?}, but the process is {:?}",
                memory.container, self.process
            ));
        }
        let has_keeper = self.keeper != Keeper::Dead;
        match &memory.pod {
            Some(PodState::Ready { .. }) if !(has_keeper && self.pause) => {
                Some("the pod is reported ready but is not".to_owned())
            }
            Some(PodState::Creating) => Some("a pod is creating without an operation".to_owned()),
            Some(state) if state.is_being_released() => Some("the pod's release is stuck".to_owned()),
            Some(PodState::NotReady { .. }) | None if has_keeper || self.runs() => {
                Some("the pod is reported released but is not".to_owned())
            }
            _ if memory.pod != self.disk_pod => Some("the pod on disk differs".to_owned()),
            _ if memory.container != self.disk_container => Some("the container on disk differs".to_owned()),
            _ => None,
        }
    }
}

impl Memory {
    pub(super) fn of(pod: Option<PodState>) -> Self {
        Self {
            pod,
            container: None,
            link: false,
            reconciled: true,
            creating: false,
            turn: false,
            pod_unwritten: false,
            container_unwritten: false,
            exit_event: None,
            late_answer: false,
            operations: BTreeMap::new(),
        }
    }

    pub(super) fn pod_happened(&mut self, change: impl FnOnce(&PodState) -> PodState) {
        if let Some(pod) = &mut self.pod {
            *pod = change(pod);
            self.pod_unwritten = true;
        }
    }

    pub(super) fn container_happened(&mut self, change: impl FnOnce(&ContainerState) -> ContainerState) {
        if let Some(container) = &mut self.container {
            *container = change(container);
            self.container_unwritten = true;
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(self.container, Some(ContainerState::Exited(_)))
    }
}
