//! Scheduler, I/O priority and memory policy of this process. All of them survive an exec.

use rustix::io::Errno;

use super::{Context, Result, checked};
use crate::plan::{MemoryPolicyPlan, SchedulerPlan};

/// The argument of sched_setattr(2), in its first version.
#[repr(C)]
struct SchedulerArgument {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Sets the scheduler (sched_setattr(2)).
///
/// # Errors
/// A value is invalid, or the caller lacks the privilege.
pub fn set_scheduler(plan: &SchedulerPlan) -> Result<()> {
    let attributes = SchedulerArgument {
        size: u32::try_from(size_of::<SchedulerArgument>()).unwrap_or(0),
        policy: plan.policy,
        flags: plan.flags,
        nice: plan.nice,
        priority: plan.priority,
        runtime: plan.runtime,
        deadline: plan.deadline,
        period: plan.period,
    };
    // SAFETY: `attributes` is a live struct that contains its size, and the kernel only reads it.
    let set = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    checked(set).map(drop).on("sched_setattr", format_args!("policy {}", plan.policy))
}

/// Sets the I/O priority (ioprio_set(2)): the class in bits 13 to 15, the priority below.
///
/// # Errors
/// The value is invalid, or the caller lacks the privilege.
pub fn set_io_priority(value: u16) -> Result<()> {
    const WHO_PROCESS: libc::c_int = 1;
    // SAFETY: all arguments are numbers.
    let set = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, libc::c_int::from(value)) };
    checked(set).map(drop).on("ioprio_set", value)
}

/// Sets the memory policy (set_mempolicy(2)).
///
/// # Errors
/// The kernel has no such policy, or a node does not exist.
pub fn set_memory_policy(plan: &MemoryPolicyPlan) -> Result<()> {
    // The kernel reads one bit less than this number (set_mempolicy(2), "BUGS").
    let bits = plan.nodes.len() * 64;
    let count = libc::c_ulong::try_from(if bits == 0 { 0 } else { bits + 1 }).map_err(|_| Errno::INVAL);
    let count = count.on("set_mempolicy", "the number of nodes")?;
    let nodes = if plan.nodes.is_empty() { std::ptr::null() } else { plan.nodes.as_ptr() };
    // SAFETY: `nodes` is null with a count of 0, or a live array with that many bits, which the kernel only reads.
    let set = unsafe { libc::syscall(libc::SYS_set_mempolicy, plan.mode, nodes, count) };
    checked(set).map(drop).on("set_mempolicy", format_args!("mode {}", plan.mode))
}
