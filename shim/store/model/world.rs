//! What is so, what is on the disk, and what a daemon knows.

use std::collections::BTreeMap;

use berth_runtime::wire::{ExitRecord, Phase};

use crate::store::{ContainerState, Exit, PodState};

/// The pause and the container's process; nobody asks which they are.
const PAUSE: i32 = 2;
pub(super) const PID: i32 = 3;

/// The code of a process that ends by itself, of one that is killed, and of one whose end nobody has seen.
pub(super) const OWN: i32 = 7;
pub(super) const KILLED: i32 = 137;
const UNKNOWN: i32 = 255;

/// How often what comes from outside may still happen.
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
    /// The disk refuses an intent.
    pub(super) refusals: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Keeper {
    Alive,
    /// SIGSTOP: it takes nothing, and does what it was told when it goes on.
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

/// What a stopped keeper will be told when it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Told {
    Create,
    Start,
    Forget,
}

/// An operation's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Call {
    Create,
    Start,
    Stop,
    Remove,
    StopPod,
    RemovePod,
}

/// What a daemon has in memory.
#[derive(Clone, Debug, Hash)]
pub(super) struct Memory {
    pub(super) pod: Option<PodState>,
    pub(super) container: Option<ContainerState>,
    pub(super) link: bool,
    /// What the keeper knows has been taken over.
    pub(super) spoken: bool,
    pub(super) making: bool,
    /// Start or Remove is at work on the container.
    pub(super) turn: bool,
    pub(super) pod_unwritten: bool,
    pub(super) container_unwritten: bool,
    /// An end that the keeper has told.
    pub(super) news: Option<ExitRecord>,
    /// An answer that nobody waits for any more.
    pub(super) late: bool,
    /// Operations in flight, and the step that each is at.
    pub(super) operations: BTreeMap<Call, u8>,
}

#[derive(Clone, Debug, Hash)]
pub(super) struct World {
    pub(super) budget: Budget,
    pub(super) keeper: Keeper,
    pub(super) pause: bool,
    pub(super) process: Process,
    /// What the keeper knows of the container.
    pub(super) knows: Option<Phase>,
    pub(super) told: Vec<Told>,
    pub(super) cgroup: bool,
    pub(super) exit_file: Option<ExitRecord>,
    pub(super) disk_pod: Option<PodState>,
    pub(super) disk_container: Option<ContainerState>,
    pub(super) daemon: Option<Memory>,
    /// The keeper has been killed, or stopped: then how the container ended may never be known, or has been guessed.
    pub(super) was_killed: bool,
    pub(super) was_stopped: bool,
    /// The keeper was told to forget the container, which kills it: had it just ended, nobody asks for that any more.
    pub(super) was_forgotten: bool,
}

pub(super) fn record(code: i32) -> ExitRecord {
    ExitRecord { code, signal: None, oom_killed: false, started_at: 1, finished_at: 2, failure: None }
}

/// How a container has ended whose end nobody has seen. The times are those of every other end here.
pub(super) fn unknown() -> Exit {
    Exit { finished_at: 2, ..Exit::unknown(1, "") }
}

pub(super) fn killed() -> Exit {
    Exit { finished_at: 2, ..Exit::killed(1, "") }
}

impl World {
    /// A pod that is ready, and nothing in it.
    pub(super) fn new(budget: Budget) -> Self {
        let ready = PodState::Creating.ready(PAUSE);
        Self {
            budget,
            keeper: Keeper::Alive,
            pause: true,
            process: Process::None,
            knows: None,
            told: Vec::new(),
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

    /// Everything in the cgroup is killed.
    pub(super) fn kill(&mut self) {
        if self.runs() {
            self.process = Process::Gone(KILLED);
        }
    }

    /// What is wrong. `at_rest`: nothing more happens by itself.
    pub(super) fn wrong(&self, at_rest: bool) -> Option<String> {
        let Some(memory) = &self.daemon else { return None };
        self.wrong_code(memory).or_else(|| at_rest.then(|| self.wrong_at_rest(memory))?)
    }

    fn wrong_code(&self, memory: &Memory) -> Option<String> {
        let Some(ContainerState::Exited(exit)) = &memory.container else { return None };
        let right = match exit.code {
            code if self.process == Process::Gone(code) => true,
            UNKNOWN => self.was_killed,
            // It has ended by the kill, as far as anybody can tell: its keeper does not speak.
            KILLED => self.was_stopped || self.was_killed || self.was_forgotten,
            _ => false,
        };
        (!right).then(|| format!("the code {} is told, and the process is {:?}", exit.code, self.process))
    }

    fn wrong_at_rest(&self, memory: &Memory) -> Option<String> {
        if let Some((call, step)) = memory.operations.first_key_value() {
            return Some(format!("{call:?} is stuck at step {step}"));
        }
        if self.keeper == Keeper::Stopped {
            return None;
        }
        let process = match &memory.container {
            Some(ContainerState::Creating) => return Some("a container is being made by nobody".to_owned()),
            Some(ContainerState::Created { .. }) => Process::Gate,
            Some(ContainerState::Running { .. }) => Process::Runs,
            Some(ContainerState::Exited(_)) | None => match self.process {
                Process::Gate | Process::Runs => return Some("a process runs that nobody knows".to_owned()),
                gone => gone,
            },
        };
        if process != self.process {
            return Some(format!("{:?} is told, and the process is {:?}", memory.container, self.process));
        }
        let has_keeper = self.keeper != Keeper::Dead;
        match &memory.pod {
            Some(PodState::Ready { .. }) if !(has_keeper && self.pause) => Some("it is not ready".to_owned()),
            Some(PodState::Creating) => Some("a pod is being made by nobody".to_owned()),
            Some(state) if state.is_being_released() => Some("nobody releases it".to_owned()),
            Some(PodState::NotReady { .. }) | None if has_keeper || self.runs() => {
                Some("it is not released".to_owned())
            }
            _ if memory.pod != self.disk_pod => Some("the pod on the disk is another".to_owned()),
            _ if memory.container != self.disk_container => {
                Some("the container on the disk is another".to_owned())
            }
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
            spoken: true,
            making: false,
            turn: false,
            pod_unwritten: false,
            container_unwritten: false,
            news: None,
            late: false,
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
