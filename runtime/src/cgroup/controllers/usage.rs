//! The counters and limits of all controllers, read on request. A value is `None` if its controller or file does not
//! exist.

use super::cpu::Throttling;
use super::hugetlb::HugePages;
use super::io::DeviceCounters;
use super::memory::{Memory, MemoryCounters};
use super::psi::{Pressure, Resource, pressure};
use super::{cpu, hugetlb, io, memory, pids};
use crate::cgroup::Cgroup;
use crate::cgroup::files::Reader;

/// The usage of a cgroup and everything below it: the few values that are read often.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// Processor time, in nanoseconds.
    pub cpu: Option<u64>,
    /// Memory.
    pub memory: Option<Memory>,
    /// Processes and threads.
    pub processes: Option<u64>,
    /// The time that tasks have waited for processors, on v2.
    pub cpu_pressure: Option<Pressure>,
    /// The time that tasks have waited for memory, on v2.
    pub memory_pressure: Option<Pressure>,
    /// The time that tasks have waited for I/O, on v2.
    pub io_pressure: Option<Pressure>,
}

/// The counters and limits of a cgroup with all below it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counters {
    /// The values that statistics contain as well.
    pub stats: Stats,
    /// Processor time in user mode, in nanoseconds.
    pub cpu_user: Option<u64>,
    /// Processor time in kernel mode, in nanoseconds.
    pub cpu_system: Option<u64>,
    /// How the CPU quota was enforced.
    pub throttling: Option<Throttling>,
    /// Memory by kind.
    pub memory: Option<MemoryCounters>,
    /// Processes that were killed because the cgroup was out of memory.
    pub oom_kills: Option<u64>,
    /// Reads and writes of each block device.
    pub devices: Vec<DeviceCounters>,
    /// Huge pages of each size.
    pub huge_pages: Vec<HugePages>,
    /// Limit of the number of processes and threads.
    pub threads_max: Option<u64>,
    /// Limits of processor time and memory.
    pub limits: Limits,
}

/// Limits. `None`: unlimited, or there is no such controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Length of a CPU period, in microseconds.
    pub cpu_period: Option<u64>,
    /// Processor time in each period, in microseconds.
    pub cpu_quota: Option<u64>,
    /// CPU shares in the scale of v1: 2 to 262,144.
    pub cpu_shares: Option<u64>,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Bytes above which memory is reclaimed first (v1: `memory.soft_limit_in_bytes`, v2: `memory.high`).
    pub memory_reservation: Option<u64>,
    /// Bytes of swap; on v1 of memory and swap together.
    pub swap: Option<u64>,
}

impl Cgroup {
    /// Returns the usage. If the cgroup does not exist, all values are `None`.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let reader = self.reader();
        let processes = pids::usage(&reader);
        Stats { processes, ..stats(&reader, cpu::usage(&reader), memory::usage(&reader)) }
    }

    /// Returns the usage without the number of processes, which is in another folder on v1.
    #[must_use]
    pub fn stats_without_processes(&self) -> Stats {
        let reader = self.reader();
        stats(&reader, cpu::usage(&reader), memory::usage(&reader))
    }

    /// Returns the counters. If the cgroup does not exist, all of them are `None` or empty.
    #[must_use]
    pub fn counters(&self) -> Counters {
        counters(&self.reader())
    }
}

fn stats(reader: &Reader<'_>, cpu: Option<u64>, memory: Option<Memory>) -> Stats {
    Stats {
        cpu,
        memory,
        processes: None,
        cpu_pressure: pressure(reader, Resource::Cpu),
        memory_pressure: pressure(reader, Resource::Memory),
        io_pressure: pressure(reader, Resource::Io),
    }
}

fn counters(reader: &Reader<'_>) -> Counters {
    let cpu = cpu::counters(reader);
    let memory = memory::counters(reader);
    Counters {
        stats: Stats { processes: pids::usage(reader), ..stats(reader, cpu.usage, memory.usage) },
        cpu_user: cpu.user,
        cpu_system: cpu.system,
        throttling: cpu.throttling,
        memory: memory.counters,
        oom_kills: memory.oom_kills,
        devices: io::counters(reader),
        huge_pages: hugetlb::usage(reader),
        threads_max: pids::max(reader),
        limits: Limits {
            cpu_period: cpu.period,
            cpu_quota: cpu.quota,
            cpu_shares: cpu.shares,
            memory: memory.limit,
            memory_reservation: memory.soft_limit,
            swap: memory.swap_limit,
        },
    }
}
