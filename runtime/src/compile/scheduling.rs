//! Scheduler, I/O priority and memory policy.

use oci_spec::runtime::{
    IOPriorityClass, LinuxIOPriority, LinuxMemoryPolicy, LinuxSchedulerFlag, LinuxSchedulerPolicy,
    MemoryPolicyFlagType, MemoryPolicyModeType, Scheduler,
};

use super::{Result, invalid};
use crate::plan::{MemoryPolicyPlan, SchedulerPlan};

/// The largest number of a node (linux/numa.h, `MAX_NUMNODES`).
const MAX_NODE: usize = 1023;

/// Compiles a scheduler (sched_setattr(2)).
pub(super) fn scheduler(scheduler: &Scheduler) -> Result<SchedulerPlan> {
    let priority = scheduler.priority().unwrap_or_default();
    let mut flags = 0;
    for flag in scheduler.flags().iter().flatten() {
        flags |= match flag {
            LinuxSchedulerFlag::SchedResetOnFork => 0x01,
            LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
            LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
            LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
            LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
            LinuxSchedulerFlag::SchedFlagUtilClampMin | LinuxSchedulerFlag::SchedFlagUtilClampMax => {
                return Err(invalid("process.scheduler.flags", flag.to_string(), "has no value in the spec"));
            }
        };
    }
    Ok(SchedulerPlan {
        policy: match scheduler.policy() {
            LinuxSchedulerPolicy::SchedOther => 0,
            LinuxSchedulerPolicy::SchedFifo => 1,
            LinuxSchedulerPolicy::SchedRr => 2,
            LinuxSchedulerPolicy::SchedBatch => 3,
            LinuxSchedulerPolicy::SchedIso => 4,
            LinuxSchedulerPolicy::SchedIdle => 5,
            LinuxSchedulerPolicy::SchedDeadline => 6,
        },
        flags,
        nice: scheduler.nice().unwrap_or_default(),
        priority: u32::try_from(priority)
            .map_err(|_| invalid("process.scheduler.priority", priority.to_string(), "is negative"))?,
        runtime: scheduler.runtime().unwrap_or_default(),
        deadline: scheduler.deadline().unwrap_or_default(),
        period: scheduler.period().unwrap_or_default(),
    })
}

/// Compiles an I/O priority (ioprio_set(2)).
pub(super) fn io_priority(priority: &LinuxIOPriority) -> Result<u16> {
    io_priority_value(priority.class(), priority.priority())
}

fn io_priority_value(class: IOPriorityClass, level: i64) -> Result<u16> {
    let class: u16 = match class {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    match u16::try_from(level) {
        Ok(level @ 0..=7) => Ok(class << 13 | level),
        _ => Err(invalid("process.ioPriority.priority", level.to_string(), "is not from 0 to 7")),
    }
}

/// Compiles a memory policy (set_mempolicy(2)).
pub(super) fn memory_policy(policy: &LinuxMemoryPolicy) -> Result<MemoryPolicyPlan> {
    let mode: u32 = match policy.mode() {
        MemoryPolicyModeType::MpolDefault => 0,
        MemoryPolicyModeType::MpolPreferred => 1,
        MemoryPolicyModeType::MpolBind => 2,
        MemoryPolicyModeType::MpolInterleave => 3,
        MemoryPolicyModeType::MpolLocal => 4,
        MemoryPolicyModeType::MpolPreferredMany => 5,
        MemoryPolicyModeType::MpolWeightedInterleave => 6,
    };
    let flags = policy.flags().iter().flatten().map(|flag| match flag {
        MemoryPolicyFlagType::MpolFNumaBalancing => 1_u32 << 13,
        MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
        MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
    });
    let text = policy.nodes().clone().unwrap_or_default();
    let nodes = nodes(&text).ok_or_else(|| {
        invalid("linux.memoryPolicy.nodes", text.as_str(), "is not a list of nodes such as 0-1,3")
    })?;
    Ok(MemoryPolicyPlan { mode: flags.fold(mode, |mode, flag| mode | flag), nodes })
}

/// Parses a list such as `0-1,3` to bits.
fn nodes(text: &str) -> Option<Vec<u64>> {
    let mut bits = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last > MAX_NODE {
            return None;
        }
        bits.resize(bits.len().max(last / 64 + 1), 0_u64);
        for node in first..=last {
            *bits.get_mut(node / 64)? |= 1 << (node % 64);
        }
    }
    Some(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_bits() {
        assert_eq!(nodes("0-1,3"), Some(vec![0b1011]));
        assert_eq!(nodes("64"), Some(vec![0, 1]));
        assert_eq!(nodes(""), Some(Vec::new()));
        for invalid in ["a", "1-0", "1024", "0--1"] {
            assert_eq!(nodes(invalid), None, "{invalid}");
        }
    }

    #[test]
    fn values_are_those_of_the_kernel() {
        assert_eq!(io_priority_value(IOPriorityClass::IoprioClassIdle, 2).unwrap(), 3 << 13 | 2);
        let error = io_priority_value(IOPriorityClass::IoprioClassBe, 9).unwrap_err();
        assert!(error.to_string().contains("ioPriority"), "{error}");
        let mut fifo = Scheduler::default();
        fifo.set_policy(LinuxSchedulerPolicy::SchedFifo);
        fifo.set_priority(Some(7));
        fifo.set_flags(Some(vec![LinuxSchedulerFlag::SchedResetOnFork]));
        let plan = scheduler(&fifo).unwrap();
        assert_eq!((plan.policy, plan.priority, plan.flags), (1, 7, 1));
        fifo.set_priority(Some(-1));
        assert!(scheduler(&fifo).is_err());
    }
}
