//! Decisions that depend on the states of pods and containers. They are pure functions: the calls, the
//! recovery and the exhaustive model check in `store::model` use them.

use berth_runtime::wire::{ExitRecord, Phase};

use super::{ContainerState, PodState};

/// The meaning of a keeper's report for the state of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeeperReport {
    /// The state does not change.
    Unchanged,
    /// It runs since this time.
    Running(i64),
    /// It has ended.
    Ended(ExitRecord),
    /// The keeper does not have it: an earlier daemon began to remove it, and the keeper has killed its
    /// processes and unregistered it.
    Forgotten,
}

/// The action of recovery for a pod record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodRecovery {
    /// Its creation was interrupted: undo it and end its keeper.
    Undo,
    /// Follow its keeper.
    Follow,
    /// Its keeper cannot be followed: end the keeper, if there is one, and release the pod's resources.
    Release,
    /// It holds no resources. Its keeper should have ended; end it if it has not.
    Released,
}

impl ContainerState {
    /// Checks whether StartContainer may start the container.
    ///
    /// # Errors
    /// The reason if it may not.
    pub fn may_start(&self) -> Result<(), &'static str> {
        match self {
            Self::Created { .. } => Ok(()),
            Self::Running { .. } => Err("it is running"),
            Self::Exited(_) => Err("it has ended"),
            Self::Creating => Err("it is being created"),
        }
    }

    /// Returns whether StopContainer has to stop something. A created container waits at the gate and has no
    /// command to signal: as in containerd, nothing happens. But an earlier daemon may have started it
    /// without recording that, so until `is_reconciled`, it is stopped.
    #[must_use]
    pub fn needs_stop(&self, is_reconciled: bool) -> bool {
        match self {
            Self::Running { .. } => true,
            Self::Created { .. } => !is_reconciled,
            Self::Creating | Self::Exited(_) => false,
        }
    }

    /// Compares the state with the phase that the keeper reports; none if the keeper does not have the
    /// container.
    #[must_use]
    pub fn compare(&self, phase: Option<&Phase>) -> KeeperReport {
        match (self, phase) {
            // The first report of an exit stands.
            (Self::Exited(_), _) | (_, Some(Phase::Creating | Phase::Created)) => KeeperReport::Unchanged,
            (_, Some(Phase::Running { started_at })) => KeeperReport::Running(*started_at),
            (_, Some(Phase::Exited(record))) => KeeperReport::Ended(record.clone()),
            (_, None) => KeeperReport::Forgotten,
        }
    }
}

impl PodState {
    /// Returns the pid of the pause if containers can be created and started in the pod.
    #[must_use]
    pub fn pause(&self) -> Option<i32> {
        match self {
            Self::Ready { pause_pid } => Some(*pause_pid),
            Self::Creating | Self::Lost | Self::NotReady { .. } => None,
        }
    }

    /// Returns whether the pod still needs its keeper: if the keeper ends, the pod becomes not ready.
    #[must_use]
    pub fn needs_keeper(&self) -> bool {
        matches!(self, Self::Ready { .. } | Self::Lost)
    }

    /// Returns whether the release of the pod's resources has begun and is not complete.
    #[must_use]
    pub fn is_being_released(&self) -> bool {
        *self == Self::NotReady { released: false }
    }

    /// Returns what recovery does with the pod. `reachable`: its keeper lives and can be connected to.
    #[must_use]
    pub fn recovery(&self, reachable: bool) -> PodRecovery {
        match self {
            Self::Creating => PodRecovery::Undo,
            Self::NotReady { released: true } => PodRecovery::Released,
            Self::Ready { .. } | Self::Lost | Self::NotReady { released: false } if reachable => {
                PodRecovery::Follow
            }
            Self::Ready { .. } | Self::Lost | Self::NotReady { released: false } => PodRecovery::Release,
        }
    }
}
