//! The results of successful calls.

use serde::{Deserialize, Serialize};

use super::snapshot::Snapshot;

/// The result of a successful call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// No result beyond the success.
    Done,
    /// The answer to `Hello`.
    Hello(Snapshot),
    /// The pause runs.
    Sandbox {
        /// The pid in the host's process namespace.
        pid: i32,
    },
    /// The first process waits just before exec.
    Created {
        /// The pid in the host's process namespace.
        pid: i32,
    },
    /// The command runs.
    Started {
        /// When exec succeeded, in nanoseconds since the epoch.
        at: i64,
    },
    /// The exec's command runs.
    ExecStarted {
        /// The pid in the host's process namespace.
        pid: i32,
    },
}
