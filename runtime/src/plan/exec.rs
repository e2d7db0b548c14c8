//! The plan of an exec: a further process in a running container.

use serde::{Deserialize, Serialize};

use super::namespaces::UserNamespace;
use super::process::ProcessPlan;
use super::runtime::RuntimeExec;
use super::{CgroupJoin, FdSlot};

/// The plan of an exec: a further process in a running container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecPlan {
    /// The command with its credentials and limits.
    pub process: ProcessPlan,
    /// The exec's cgroup, below the container's.
    pub cgroup: CgroupJoin,
    /// The ids of the container's user namespace, which the exec joins.
    #[serde(default)]
    pub userns: Option<UserNamespace>,
    /// Standard input. Without one it is /dev/null.
    pub stdin: Option<FdSlot>,
    /// Standard output. Without one it is /dev/null.
    pub stdout: Option<FdSlot>,
    /// Standard error. Without one it is /dev/null.
    pub stderr: Option<FdSlot>,
    /// Whether the exec has a pseudo terminal, created in the container's devpts. The keeper sends its master with
    /// the answer.
    pub tty: bool,
    /// The input of the OCI runtime that created the container. Without one, berth's own runtime did.
    #[serde(default)]
    pub runtime: Option<RuntimeExec>,
}
