//! The plans of a pod's, a container's and an exec's first process. The daemon compiles them, so that the process
//! itself parses nothing and allocates little: it executes these structures in order.
//!
//! Strings contain no NUL byte: the compiler rejects those that do, because the kernel cannot take them.
//! Descriptors are sent beside the message that contains a plan (`SCM_RIGHTS`). The plan refers to them by their
//! index.
//!
//! * [`sandbox`], [`container`], [`exec`]: the three plans
//! * [`process`]: the command and its credentials; [`scheduling`]: how the kernel schedules it
//! * [`namespaces`], [`mounts`], [`devices`], [`hooks`]: the parts of a container; [`restore`]: a checkpoint in place of its
//!   command; [`runtime`]: an OCI runtime that creates it

pub mod container;
pub mod devices;
pub mod exec;
pub mod hooks;
pub mod mounts;
pub mod namespaces;
pub mod process;
pub mod restore;
pub mod runtime;
pub mod sandbox;
pub mod scheduling;

use serde::{Deserialize, Serialize};

pub use container::{ContainerPlan, StdioPlan};
pub use devices::{DeviceKind, DeviceNode};
pub use exec::ExecPlan;
pub use hooks::{HookKind, HookPlan, Hooks};
pub use mounts::{CgroupHierarchy, MountIds, MountKind, MountOp, Propagation};
pub use namespaces::{IdRange, NamespaceSource, PidNamespace, UserNamespace};
pub use process::{CapabilityMasks, ProcessPlan, Rlimit, SeccompListener, SeccompPlan};
pub use restore::RestorePlan;
pub use runtime::{RuntimeExec, RuntimePlan};
pub use sandbox::{PodFile, SandboxPlan};
pub use scheduling::{MemoryPolicyPlan, SchedulerPlan, SchedulingPlan};

/// The index of a descriptor among those that came with the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdSlot(pub u32);

/// How a process joins its cgroup before it executes a program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupJoin {
    /// v2: the cgroup's directory, for `CLONE_INTO_CGROUP` (clone(2)).
    pub directory: Option<FdSlot>,
    /// v1: `tasks` of every hierarchy, open for writing. The child moves itself.
    // Older keepers write the child's pid to these files. The name on the wire is the same for both.
    #[serde(rename = "procs")]
    pub tasks: Vec<FdSlot>,
    /// `memory.events` (v2) or `memory.oom_control` (v1). It is read after the container has ended, to detect an
    /// OOM kill.
    pub oom: Option<FdSlot>,
    /// v2 with the systemd driver: `memory.events` of the cgroup above, which remains if systemd removes the container's cgroup
    /// first.
    #[serde(default)]
    pub oom_above: Option<FdSlot>,
}
