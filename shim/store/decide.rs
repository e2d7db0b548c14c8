//! What the states of pods and containers decide: pure functions, which the calls and the recovery go by and which the
//! exhaustive search in [`model`](super::model) goes by as well.

use berth_runtime::wire::{ExitRecord, Phase};

use super::{ContainerState, PodState};

/// What a keeper's word about a container means for its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It is as it is known.
    AsKnown,
    /// It runs, since this time.
    Running(i64),
    /// It has ended.
    Ended(ExitRecord),
    /// The keeper does not know it: a daemon that was removing it had it forgotten, which kills what runs.
    Forgotten,
}

/// What becomes of the record of a pod that a daemon finds at its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It was being made: everything is taken back, and its keeper ended.
    TakeBack,
    /// Its keeper is followed.
    Follow,
    /// It has no keeper that could be followed: one that is there is ended, and what the pod holds is released.
    Ended,
    /// It holds nothing; a keeper that is there should have ended, and is ended.
    Released,
}

impl ContainerState {
    /// Whether StartContainer may go on.
    ///
    /// # Errors
    /// Why not.
    pub fn may_start(&self) -> Result<(), &'static str> {
        match self {
            Self::Created { .. } => Ok(()),
            Self::Running { .. } => Err("it is running"),
            Self::Exited(_) => Err("it has ended"),
            Self::Creating => Err("it is being created"),
        }
    }

    /// Whether StopContainer has something to stop. A container that waits at the gate has no command that could be told:
    /// as with containerd, nothing happens; but a former daemon may have started it and not written that down, which is so
    /// until the keeper has `spoken`.
    #[must_use]
    pub fn is_to_be_stopped(&self, spoken: bool) -> bool {
        match self {
            Self::Running { .. } => true,
            Self::Created { .. } => !spoken,
            Self::Creating | Self::Exited(_) => false,
        }
    }

    /// What it means that a keeper says this of the container, or does not know it.
    #[must_use]
    pub fn seen(&self, phase: Option<&Phase>) -> Seen {
        match (self, phase) {
            // The first news of an end stands.
            (Self::Exited(_), _) | (_, Some(Phase::Creating | Phase::Created)) => Seen::AsKnown,
            (_, Some(Phase::Running { started_at })) => Seen::Running(*started_at),
            (_, Some(Phase::Exited(record))) => Seen::Ended(record.clone()),
            (_, None) => Seen::Forgotten,
        }
    }
}

impl PodState {
    /// The pause, in a pod that containers can be made and started in.
    #[must_use]
    pub fn pause(&self) -> Option<i32> {
        match self {
            Self::Ready { pause_pid } => Some(*pause_pid),
            Self::Creating | Self::Lost | Self::NotReady { .. } => None,
        }
    }

    /// Whether its keeper is still needed: a keeper that ends takes the pod down.
    #[must_use]
    pub fn needs_keeper(&self) -> bool {
        matches!(self, Self::Ready { .. } | Self::Lost)
    }

    /// Whether somebody has begun to release what it holds, and is not done.
    #[must_use]
    pub fn is_being_released(&self) -> bool {
        *self == Self::NotReady { released: false }
    }

    /// What becomes of it at the start of a daemon, where its keeper is `reachable` or not.
    #[must_use]
    pub fn found(&self, reachable: bool) -> Found {
        match self {
            Self::Creating => Found::TakeBack,
            Self::NotReady { released: true } => Found::Released,
            Self::Ready { .. } | Self::Lost | Self::NotReady { released: false } if reachable => {
                Found::Follow
            }
            Self::Ready { .. } | Self::Lost | Self::NotReady { released: false } => Found::Ended,
        }
    }
}
