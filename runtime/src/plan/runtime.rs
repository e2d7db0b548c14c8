//! The OCI runtime that creates a container in the place of berth's own.

use serde::{Deserialize, Serialize};

/// The OCI runtime of a container, whose command line the keeper calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimePlan {
    /// The absolute path of the program.
    pub program: String,
    /// The folder of its state (`--root`).
    pub root: String,
    /// The container's id.
    pub id: String,
    /// The folder that contains the bundle and may be entered by root only. The runtime sees a folder in memory in its place,
    /// with nothing but the bundle.
    pub covered: String,
    /// The bundle: a folder below that one, with `config.json`.
    pub bundle: String,
    /// The time limit of a call in seconds.
    pub seconds: u64,
}

/// The part of an exec that its container's OCI runtime reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeExec {
    /// The process as JSON (OCI runtime specification, "Process").
    pub process: String,
    /// The value of the option `--cgroup`, with which the runtime starts the process in the exec's cgroup. Without it, the process
    /// is moved there.
    pub cgroup: Option<String>,
}
