//! The states of a container, and the transitions between them.

use berth_runtime::wire::ExitRecord;
use serde::{Deserialize, Serialize};

use crate::store::event_cursor::Level;

/// The state of a container. The data that belongs to a state is in its variant, so that both cannot
/// disagree.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ContainerState {
    /// CreateContainer is in progress. Not shown to clients; recovery undoes it.
    Creating,
    /// Init waits at the gate, just before its exec.
    Created {
        /// The pid in the host's pid namespace.
        pid: i32,
    },
    /// The command runs.
    Running {
        /// The pid in the host's pid namespace.
        pid: i32,
        /// Nanoseconds since the epoch.
        started_at: i64,
    },
    /// It has ended.
    Exited(Exit),
}

impl ContainerState {
    /// Returns how far a container in this state is in its life cycle, for events.
    #[must_use]
    pub fn event_level(&self) -> Level {
        match self {
            Self::Creating => Level::Nothing,
            Self::Created { .. } => Level::Created,
            Self::Running { .. } => Level::Started,
            Self::Exited(exit) if exit.started_at == 0 => Level::NeverStarted,
            Self::Exited(_) => Level::Stopped,
        }
    }

    /// Returns the state with an addition to the message of the exit. A repeated one is not added.
    #[must_use]
    pub fn with_exit_note(&self, note: &str) -> Self {
        match self {
            Self::Exited(exit) if !exit.message.contains(note) => {
                let separator = if exit.message.is_empty() { "" } else { "; " };
                Self::Exited(Exit { message: format!("{}{separator}{note}", exit.message), ..exit.clone() })
            }
            _ => self.clone(),
        }
    }

    /// Returns the state after init has reached the gate.
    #[must_use]
    pub fn created(&self, pid: i32) -> Self {
        match self {
            Self::Creating => Self::Created { pid },
            _ => self.clone(),
        }
    }

    /// Returns the state after the command was started. An exited container stays exited: the reports of
    /// start and exit can arrive out of order.
    #[must_use]
    pub fn started(&self, started_at: i64) -> Self {
        match self {
            Self::Created { pid } => Self::Running { pid: *pid, started_at },
            _ => self.clone(),
        }
    }

    /// Returns the state of a running container whose first process was replaced by that of a restored checkpoint.
    #[must_use]
    pub fn with_pid(self, pid: Option<i32>) -> Self {
        match (self, pid) {
            (Self::Running { started_at, .. }, Some(pid)) => Self::Running { pid, started_at },
            (other, _) => other,
        }
    }

    /// Returns the state after an exit. The first reported exit stands.
    #[must_use]
    pub fn exited(&self, exit: Exit) -> Self {
        match self {
            Self::Exited(_) => self.clone(),
            _ => Self::Exited(exit),
        }
    }

    /// Returns the pid of its process, if it has one.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        match self {
            Self::Created { pid } | Self::Running { pid, .. } => Some(*pid),
            Self::Creating | Self::Exited(_) => None,
        }
    }
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code, or 128 plus the signal.
    pub code: i32,
    /// The reason that `kubectl describe` shows.
    pub reason: ExitReason,
    /// A message for people.
    pub message: String,
    /// Nanoseconds since the epoch; 0 if the command never ran.
    pub started_at: i64,
    /// Nanoseconds since the epoch.
    pub finished_at: i64,
}

impl Exit {
    /// Converts the keeper's record of an exit.
    #[must_use]
    pub fn from_record(record: &ExitRecord) -> Self {
        let reason = match (record.oom_killed, record.code) {
            (true, _) => ExitReason::OomKilled,
            (false, 0) => ExitReason::Completed,
            (false, _) => ExitReason::Error,
        };
        Self {
            code: record.code,
            reason,
            message: String::new(),
            started_at: record.started_at,
            finished_at: record.finished_at,
        }
    }

    /// An exit of a container that was killed while its exit was not observed.
    #[must_use]
    pub fn killed(started_at: i64, message: &str) -> Self {
        const SIGKILL: i32 = 9;
        Self {
            code: 128 + SIGKILL,
            reason: ExitReason::Error,
            message: message.to_owned(),
            started_at,
            finished_at: crate::clock::now(),
        }
    }

    /// An exit that was not observed.
    #[must_use]
    pub fn unknown(started_at: i64, message: &str) -> Self {
        Self {
            code: 255,
            reason: ExitReason::ContainerStatusUnknown,
            message: message.to_owned(),
            started_at,
            finished_at: crate::clock::now(),
        }
    }
}

/// Why a container ended (CRI `ContainerStatus.reason`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ExitReason {
    /// Exit code 0.
    Completed,
    /// Any other exit code.
    Error,
    /// The kernel killed it for lack of memory.
    #[serde(rename = "OOMKilled")]
    OomKilled,
    /// The command could not be run.
    #[serde(alias = "ContainerCannotRun")]
    StartError,
    /// The end was not observed: the host went down or the keeper was killed.
    ContainerStatusUnknown,
}

impl ExitReason {
    /// Returns the CRI's name of the reason.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "Completed",
            Self::Error => "Error",
            Self::OomKilled => "OOMKilled",
            Self::StartError => "StartError",
            Self::ContainerStatusUnknown => "ContainerStatusUnknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(code: i32, oom_killed: bool) -> Exit {
        Exit::from_record(&ExitRecord {
            code,
            signal: None,
            oom_killed,
            started_at: 1,
            finished_at: 2,
            failure: None,
        })
    }

    #[test]
    fn reasons_are_those_of_the_kubelet() {
        assert_eq!(exit(0, false).reason.as_str(), "Completed");
        assert_eq!(exit(3, false).reason.as_str(), "Error");
        assert_eq!(exit(137, true).reason.as_str(), "OOMKilled");
    }

    #[test]
    fn the_first_exit_stands() {
        let ended = ContainerState::Running { pid: 7, started_at: 1 }.exited(exit(3, false));
        assert_eq!(ended.exited(exit(0, false)), ended);
        assert_eq!(ended.started(9), ended, "the reports of start and exit can arrive out of order");
    }

    #[test]
    fn only_a_created_container_starts() {
        assert_eq!(ContainerState::Creating.started(1), ContainerState::Creating);
        let created = ContainerState::Creating.created(7);
        assert_eq!(created.started(1), ContainerState::Running { pid: 7, started_at: 1 });
    }
}
