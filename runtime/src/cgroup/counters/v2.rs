//! The files of cgroup v2 (cgroup-v2.rst).

use std::path::Path;

use super::{Counters, Limits, MemoryCounters, Throttling};
use crate::cgroup::files::{number, read, value};
use crate::cgroup::{Stats, hugetlb, io};
use crate::oom_kills;

pub(super) fn counters(folder: &Path, stats: Stats) -> Counters {
    let cpu = read(&folder.join("cpu.stat")).unwrap_or_default();
    let nanoseconds = |key| value(&cpu, key).map(|microseconds| microseconds.saturating_mul(1000));
    let throttling = value(&cpu, "nr_periods").map(|periods| Throttling {
        periods,
        throttled_periods: value(&cpu, "nr_throttled").unwrap_or(0),
        throttled_time: nanoseconds("throttled_usec").unwrap_or(0),
    });
    let events = read(&folder.join("memory.events")).unwrap_or_default();
    let memory = stats.memory.and_then(|_| read(&folder.join("memory.stat"))).map(|stat| MemoryCounters {
        cache: value(&stat, "file").unwrap_or(0),
        mapped_file: value(&stat, "file_mapped").unwrap_or(0),
        active_file: value(&stat, "active_file").unwrap_or(0),
        inactive_file: value(&stat, "inactive_file").unwrap_or(0),
        kernel: value(&stat, "kernel").or_else(|| value(&stat, "kernel_stack")),
        max_usage: number(&folder.join("memory.peak")),
        limit_hits: value(&events, "max"),
        own_faults: value(&stat, "pgfault").unwrap_or(0),
        own_major_faults: value(&stat, "pgmajfault").unwrap_or(0),
    });
    let (cpu_quota, cpu_period) =
        read(&folder.join("cpu.max")).map(|text| cpu_max(&text)).unwrap_or_default();
    Counters {
        cpu_user: nanoseconds("user_usec"),
        cpu_system: nanoseconds("system_usec"),
        throttling,
        memory,
        oom_kills: oom_kills::parse(&events),
        devices: io::counters_v2(folder),
        huge_pages: hugetlb::usage_v2(folder),
        threads_max: number(&folder.join("pids.max")),
        limits: Limits {
            cpu_period,
            cpu_quota,
            cpu_shares: number(&folder.join("cpu.weight")).map(shares_of),
            memory: number(&folder.join("memory.max")),
            memory_reservation: number(&folder.join("memory.high")),
            swap: number(&folder.join("memory.swap.max")),
        },
        stats,
    }
}

/// Parses `cpu.max`: the quota or `max`, and the period.
fn cpu_max(text: &str) -> (Option<u64>, Option<u64>) {
    let mut words = text.split_whitespace().map(|word| word.parse().ok());
    (words.next().flatten(), words.next().flatten())
}

/// Converts a weight of v2 (1 to 10,000) to shares of v1 (2 to 262,144) as cAdvisor does.
fn shares_of(weight: u64) -> u64 {
    2 + weight.saturating_sub(1).saturating_mul(262_142) / 9999
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::files::folder_with;
    use crate::cgroup::{DeviceCounters, HugePages, Memory};

    #[test]
    fn counters_of_v2() {
        let folder = folder_with(&[
            (
                "cpu.stat",
                "usage_usec 9\nuser_usec 5\nsystem_usec 4\nnr_periods 7\nnr_throttled 3\nthrottled_usec 2\n",
            ),
            ("cpu.max", "20000 100000\n"),
            ("cpu.weight", "100\n"),
            ("memory.current", "1000\n"),
            ("memory.peak", "2000\n"),
            ("memory.max", "max\n"),
            ("memory.high", "4096\n"),
            ("memory.stat", "anon 1\nfile 300\nkernel 40\nfile_mapped 200\npgfault 7\npgmajfault 1\n"),
            ("memory.events", "low 0\nhigh 0\nmax 5\noom 1\noom_kill 2\n"),
            ("io.stat", "8:16 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n7:0\n"),
            ("pids.max", "max\n"),
            ("hugetlb.2MB.current", "2097152\n"),
            ("hugetlb.2MB.rsvd.current", "1\n"),
        ]);
        let found = counters(folder.path(), Stats { memory: Some(Memory::default()), ..Stats::default() });
        assert_eq!((found.cpu_user, found.cpu_system), (Some(5000), Some(4000)));
        let throttling = Throttling { periods: 7, throttled_periods: 3, throttled_time: 2000 };
        assert_eq!(found.throttling, Some(throttling));
        let memory = found.memory.unwrap();
        assert_eq!((memory.cache, memory.mapped_file, memory.kernel), (300, 200, Some(40)));
        assert_eq!((memory.max_usage, memory.limit_hits, memory.own_faults), (Some(2000), Some(5), 7));
        assert_eq!((found.oom_kills, found.threads_max), (Some(2), None));
        let disk = DeviceCounters {
            major: 8,
            minor: 16,
            read_bytes: 4096,
            written_bytes: 8192,
            reads: 1,
            writes: 2,
        };
        assert_eq!(found.devices, [disk, DeviceCounters { major: 7, ..DeviceCounters::default() }]);
        let huge = HugePages { size: "2MB".to_owned(), usage: 2 << 20, max_usage: None };
        assert_eq!(found.huge_pages, [huge]);
        let limits = Limits {
            cpu_period: Some(100_000),
            cpu_quota: Some(20_000),
            cpu_shares: Some(2597),
            memory: None,
            memory_reservation: Some(4096),
            swap: None,
        };
        assert_eq!(found.limits, limits);
    }
}
