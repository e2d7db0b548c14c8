//! All counters and limits of a cgroup, for metrics (Documentation/admin-guide/cgroup-v1, cgroup-v2.rst). A value is
//! `None` if its controller or file does not exist.
//!
//! * [`Stats`] has the few values that are read often
//! * [`v1`], [`v2`]: the files of each version

mod v1;
mod v2;

use super::hugetlb::HugePages;
use super::io::DeviceCounters;
use super::{Cgroup, Stats};

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

/// Enforcement of a CPU quota.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throttling {
    /// Periods in which something ran.
    pub periods: u64,
    /// Periods in which the quota was used up.
    pub throttled_periods: u64,
    /// Nanoseconds for which tasks waited for the next period.
    pub throttled_time: u64,
}

/// Memory by kind, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryCounters {
    /// Pages of files.
    pub cache: u64,
    /// Files that are mapped into processes.
    pub mapped_file: u64,
    /// File pages that were used recently.
    pub active_file: u64,
    /// File pages that are reclaimed first.
    pub inactive_file: u64,
    /// Kernel memory.
    pub kernel: Option<u64>,
    /// Largest usage so far.
    pub max_usage: Option<u64>,
    /// How often the limit was reached.
    pub limit_hits: Option<u64>,
    /// Page faults of the cgroup itself.
    pub own_faults: u64,
    /// Major page faults of the cgroup itself.
    pub own_major_faults: u64,
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
    /// Returns the counters. If the cgroup does not exist, all of them are `None` or empty.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let stats = self.stats();
        if self.v2 {
            v2::counters(&self.process_folder, stats)
        } else {
            v1::counters(|name| self.folder_of(name), stats)
        }
    }
}
