//! The states of a container.

use berth_runtime::wire::{ExitRecord, Failure, InitFailure, Phase};

use crate::failure::Origin;

/// The state of a container.
#[derive(Debug)]
pub(super) enum State {
    /// Its first process has not reached the gate yet.
    Creating(Origin),
    /// It waits at the gate.
    Created,
    /// It has left the gate, but has not executed its command yet.
    Starting(Origin),
    /// The command runs.
    Running { started_at: i64 },
    /// The first process has failed and reported it, but has not ended yet.
    Failed(Option<InitFailure>),
    /// It has ended.
    Exited(ExitRecord),
}

impl State {
    /// The state for a daemon that connects.
    pub(super) fn phase(&self) -> Phase {
        match self {
            Self::Creating(_) => Phase::Creating,
            Self::Created | Self::Starting(_) | Self::Failed(_) => Phase::Created,
            Self::Running { started_at } => Phase::Running { started_at: *started_at },
            Self::Exited(record) => Phase::Exited(record.clone()),
        }
    }

    pub(super) fn is_creating(&self) -> bool {
        matches!(self, Self::Creating(_))
    }

    pub(super) fn is_starting(&self) -> bool {
        matches!(self, Self::Starting(_))
    }

    pub(super) fn is_exited(&self) -> bool {
        matches!(self, Self::Exited(_))
    }

    /// # Errors
    /// The state in words, if the command does not run.
    pub(super) fn require_running(&self) -> Result<(), &'static str> {
        match self {
            Self::Running { .. } => Ok(()),
            Self::Exited(_) | Self::Failed(_) => Err("ended"),
            Self::Creating(_) | Self::Created | Self::Starting(_) => Err("not running"),
        }
    }

    /// # Errors
    /// The state in words, if it is not one that waits at the gate.
    pub(super) fn require_created(&self) -> Result<(), &'static str> {
        match self {
            Self::Created => Ok(()),
            Self::Creating(_) => Err("being created"),
            Self::Starting(_) | Self::Running { .. } => Err("running"),
            Self::Failed(_) | Self::Exited(_) => Err("ended"),
        }
    }

    /// The first process has reached the gate. Returns the call that waits for this.
    pub(super) fn reach_gate(&mut self) -> Option<Origin> {
        let Self::Creating(origin) = *self else { return None };
        *self = Self::Created;
        Some(origin)
    }

    /// The command runs. Returns the call that waits for this.
    pub(super) fn run(&mut self, started_at: i64) -> Option<Origin> {
        let Self::Starting(origin) = *self else { return None };
        *self = Self::Running { started_at };
        Some(origin)
    }

    /// The creation or the start has failed. Returns the call that waits for it.
    pub(super) fn fail(&mut self, failure: &Failure) -> Option<Origin> {
        let (Self::Creating(origin) | Self::Starting(origin)) = *self else { return None };
        self.set_failed(failure);
        Some(origin)
    }

    /// A `poststart` hook has failed. The exit record names the failure.
    pub(super) fn fail_after_start(&mut self, failure: &Failure) {
        if matches!(self, Self::Running { .. }) && matches!(failure, Failure::Init(_)) {
            self.set_failed(failure);
        }
    }

    fn set_failed(&mut self, failure: &Failure) {
        *self = Self::Failed(match failure {
            Failure::Init(failure) => Some(failure.clone()),
            _ => None,
        });
    }

    /// The first process has ended. `record` makes the exit record of the start time (0 without a start) and the failure.
    pub(super) fn exit(&mut self, record: impl FnOnce(i64, Option<InitFailure>) -> ExitRecord) {
        let started_at = match self {
            Self::Running { started_at } => *started_at,
            _ => 0,
        };
        let failure = match self {
            Self::Failed(failure) => failure.take(),
            _ => None,
        };
        *self = Self::Exited(record(started_at, failure));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::vanished;

    const ORIGIN: Origin = Origin { connection: 1, request: 7 };

    fn record(started_at: i64, failure: Option<InitFailure>) -> ExitRecord {
        ExitRecord { code: 1, signal: None, oom_killed: false, started_at, finished_at: 9, failure }
    }

    #[test]
    fn a_container_is_created_started_and_ends() {
        let mut state = State::Creating(ORIGIN);
        assert_eq!(state.require_created(), Err("being created"));
        assert!(state.run(5).is_none(), "it has not been started");
        assert!(state.reach_gate().is_some() && state.require_created().is_ok());
        assert!(state.fail(&vanished()).is_none(), "no call waits");
        state = State::Starting(ORIGIN);
        assert!(state.run(5).is_some() && state.require_running().is_ok());
        state.exit(record);
        assert!(state.is_exited() && state.require_running() == Err("ended"));
        assert!(matches!(state.phase(), Phase::Exited(ExitRecord { started_at: 5, failure: None, .. })));
    }

    #[test]
    fn the_exit_record_names_a_failure() {
        let mut state = State::Starting(ORIGIN);
        assert!(state.fail(&vanished()).is_some());
        assert!(state.fail(&vanished()).is_none(), "a call is answered once");
        state.exit(record);
        assert!(matches!(state.phase(), Phase::Exited(ExitRecord { started_at: 0, failure: Some(_), .. })));
    }
}
