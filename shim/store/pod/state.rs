//! The states of a pod, and the transitions between them.

use serde::{Deserialize, Serialize};

use crate::store::event_cursor::Level;

/// The state of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PodState {
    /// RunPodSandbox is in progress. Not shown to clients; recovery undoes it.
    Creating,
    /// The pause runs and the network is attached.
    Ready {
        /// The pid of the pause in the host's pid namespace.
        pause_pid: i32,
    },
    /// The pause has ended by itself. Containers may run until the client stops the pod.
    Lost,
    /// StopPodSandbox has begun, or the keeper has ended. The pod's resources are being released or were
    /// released.
    NotReady {
        /// Everything the pod held was released: cgroup, addresses, keeper.
        released: bool,
    },
}

impl PodState {
    /// Returns how far a pod that was read from disk is in its life cycle, for events. A pod that is not fully released
    /// counts as started: its stop event may not have been sent.
    #[must_use]
    pub fn stored_event_level(&self) -> Level {
        match self {
            Self::Creating => Level::Nothing,
            Self::Ready { .. } | Self::Lost | Self::NotReady { released: false } => Level::Started,
            Self::NotReady { released: true } => Level::Stopped,
        }
    }

    /// Returns the state after the pause has started.
    #[must_use]
    pub fn ready(&self, pause_pid: i32) -> Self {
        match self {
            Self::Creating | Self::Ready { .. } => Self::Ready { pause_pid },
            // A stopped pod never becomes ready again.
            Self::Lost | Self::NotReady { .. } => self.clone(),
        }
    }

    /// Returns the state after the pause has ended.
    #[must_use]
    pub fn pause_ended(&self) -> Self {
        match self {
            Self::Ready { .. } => Self::Lost,
            Self::Creating | Self::Lost | Self::NotReady { .. } => self.clone(),
        }
    }

    /// Returns the state after a stop has begun.
    #[must_use]
    pub fn stopping(&self) -> Self {
        match self {
            Self::NotReady { .. } => self.clone(),
            Self::Creating | Self::Ready { .. } | Self::Lost => Self::NotReady { released: false },
        }
    }

    /// Returns the state after all resources were released.
    #[must_use]
    pub fn released(&self) -> Self {
        Self::NotReady { released: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_pod_never_comes_back() {
        let stopped = PodState::Ready { pause_pid: 7 }.stopping();
        assert_eq!(stopped, PodState::NotReady { released: false });
        assert_eq!(stopped.ready(8), stopped);
        assert_eq!(stopped.released().stopping(), PodState::NotReady { released: true });
        let lost = PodState::Ready { pause_pid: 7 }.pause_ended();
        assert_eq!((lost.ready(8), lost.stopping()), (PodState::Lost, stopped.clone()));
        assert_eq!(stopped.pause_ended(), stopped, "a stop continues");
    }
}
