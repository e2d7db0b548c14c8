//! How the kernel schedules a process and where it allocates its memory.

use serde::{Deserialize, Serialize};

/// How the kernel schedules a process and where it allocates its memory. The parent's values apply to those that are absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchedulingPlan {
    /// The scheduling policy with its parameters (sched_setattr(2)).
    pub scheduler: Option<SchedulerPlan>,
    /// The I/O priority: the class in bits 13 to 15, the priority below (ioprio_set(2)).
    pub io_priority: Option<u16>,
    /// The memory policy.
    pub memory_policy: Option<MemoryPolicyPlan>,
}

/// A scheduler (sched_setattr(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchedulerPlan {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// Nice value, for the policies OTHER and BATCH.
    pub nice: i32,
    /// Priority, for the policies FIFO and RR.
    pub priority: u32,
    /// Nanoseconds, for the policy DEADLINE.
    pub runtime: u64,
    /// Nanoseconds, for the policy DEADLINE.
    pub deadline: u64,
    /// Nanoseconds, for the policy DEADLINE.
    pub period: u64,
}

/// A memory policy (set_mempolicy(2)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPolicyPlan {
    /// `MPOL_*` with flags.
    pub mode: u32,
    /// The nodes as bits.
    pub nodes: Vec<u64>,
}
