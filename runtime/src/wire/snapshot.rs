//! The state of a keeper and of its containers.

use serde::{Deserialize, Serialize};

use super::failure::InitFailure;

/// The state of the keeper, for a daemon that connects.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// [`super::PROTOCOL`] of the keeper.
    pub protocol: u32,
    /// The keeper's own pid.
    pub keeper_pid: i32,
    /// The pause, while it runs.
    pub pause: Option<i32>,
    /// Containers that the daemon has not removed with [`super::Call::Forget`].
    pub containers: Vec<ContainerSnapshot>,
    /// The ids of running execs.
    pub execs: Vec<String>,
}

/// One container in a [`Snapshot`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerSnapshot {
    /// The container's id.
    pub id: String,
    /// The pid of the first process.
    pub pid: i32,
    /// The container's phase.
    pub phase: Phase,
    /// The first `poststop` hook that failed.
    #[serde(default)]
    pub poststop_failure: Option<InitFailure>,
}

/// The phase of a container, as the keeper sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// Its first process has not yet reached the gate.
    Creating,
    /// It waits at the gate.
    Created,
    /// The command runs.
    Running {
        /// When exec succeeded, in nanoseconds since the epoch.
        started_at: i64,
    },
    /// It has ended.
    Exited(ExitRecord),
}

/// The end of a container; also the content of `exit.json` in its folder.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ExitRecord {
    /// The exit code, or 128 plus the signal's number.
    pub code: i32,
    /// The signal that terminated it.
    pub signal: Option<i32>,
    /// Whether the exit code is 137 and the kernel has killed a process in the container's cgroup for lack of
    /// memory.
    pub oom_killed: bool,
    /// When exec succeeded, in nanoseconds since the epoch; 0 if it never did.
    pub started_at: i64,
    /// When the process ended, in nanoseconds since the epoch.
    pub finished_at: i64,
    /// Why the command was never executed, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<InitFailure>,
}
