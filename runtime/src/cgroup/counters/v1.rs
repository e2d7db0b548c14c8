//! The files of cgroup v1 (Documentation/admin-guide/cgroup-v1).

use std::path::Path;

use super::{Counters, Limits, MemoryCounters, Throttling};
use crate::cgroup::files::{number, read, value};
use crate::cgroup::{Stats, hugetlb, io};
use crate::oom_kills;

/// The smallest value that is not a limit: without one the kernel reports the largest multiple of a page.
const UNLIMITED: u64 = 1 << 62;

pub(super) fn counters<'a>(of: impl Fn(&str) -> Option<&'a Path>, stats: Stats) -> Counters {
    let figure = |controller: &str, file: &str| number(&of(controller)?.join(file));
    let text = |controller: &str, file: &str| read(&of(controller)?.join(file));
    let limit = |file: &str| figure("memory", file).filter(|limit| *limit < UNLIMITED);
    let throttling = text("cpu", "cpu.stat").and_then(|cpu| {
        Some(Throttling {
            periods: value(&cpu, "nr_periods")?,
            throttled_periods: value(&cpu, "nr_throttled").unwrap_or(0),
            throttled_time: value(&cpu, "throttled_time").unwrap_or(0),
        })
    });
    let memory = text("memory", "memory.stat").map(|stat| MemoryCounters {
        cache: value(&stat, "total_cache").unwrap_or(0),
        mapped_file: value(&stat, "total_mapped_file").unwrap_or(0),
        active_file: value(&stat, "total_active_file").unwrap_or(0),
        inactive_file: value(&stat, "total_inactive_file").unwrap_or(0),
        kernel: figure("memory", "memory.kmem.usage_in_bytes"),
        max_usage: figure("memory", "memory.max_usage_in_bytes"),
        limit_hits: figure("memory", "memory.failcnt"),
        own_faults: value(&stat, "pgfault").unwrap_or(0),
        own_major_faults: value(&stat, "pgmajfault").unwrap_or(0),
    });
    Counters {
        cpu_user: figure("cpuacct", "cpuacct.usage_user"),
        cpu_system: figure("cpuacct", "cpuacct.usage_sys"),
        throttling,
        memory,
        oom_kills: text("memory", "memory.oom_control").and_then(|text| oom_kills::parse(&text)),
        devices: of("blkio").map(io::counters_v1).unwrap_or_default(),
        huge_pages: of("hugetlb").map(hugetlb::usage_v1).unwrap_or_default(),
        threads_max: figure("pids", "pids.max"),
        limits: Limits {
            cpu_period: figure("cpu", "cpu.cfs_period_us"),
            // The kernel reports -1 if there is no quota, which `number` does not parse.
            cpu_quota: figure("cpu", "cpu.cfs_quota_us"),
            cpu_shares: figure("cpu", "cpu.shares"),
            memory: limit("memory.limit_in_bytes"),
            memory_reservation: limit("memory.soft_limit_in_bytes"),
            swap: limit("memory.memsw.limit_in_bytes"),
        },
        stats,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::DeviceCounters;
    use crate::cgroup::files::folder_with;

    #[test]
    fn counters_of_v1() {
        let folder = folder_with(&[
            ("cpuacct.usage_user", "5\n"),
            ("cpuacct.usage_sys", "4\n"),
            ("cpu.stat", "nr_periods 7\nnr_throttled 3\nthrottled_time 2\n"),
            ("cpu.cfs_quota_us", "-1\n"),
            ("cpu.cfs_period_us", "100000\n"),
            ("cpu.shares", "1024\n"),
            ("memory.stat", "cache 1\ntotal_cache 300\ntotal_mapped_file 200\npgfault 7\ntotal_pgfault 9\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory.soft_limit_in_bytes", "4096\n"),
            ("memory.failcnt", "5\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
            (
                "blkio.throttle.io_service_bytes_recursive",
                "8:16 Read 4096\n8:16 Write 8192\n8:16 Total 1\nTotal 1\n",
            ),
            ("blkio.throttle.io_serviced_recursive", "8:16 Read 1\n8:16 Write 2\nTotal 3\n"),
            ("hugetlb.2MB.usage_in_bytes", "0\n"),
            ("hugetlb.2MB.max_usage_in_bytes", "2097152\n"),
        ]);
        let found = counters(|_| Some(folder.path()), Stats::default());
        assert_eq!((found.cpu_user, found.cpu_system, found.oom_kills), (Some(5), Some(4), Some(2)));
        assert_eq!(found.throttling.unwrap().throttled_time, 2);
        let memory = found.memory.unwrap();
        assert_eq!((memory.cache, memory.mapped_file, memory.limit_hits), (300, 200, Some(5)));
        assert_eq!((memory.own_faults, memory.kernel), (7, None));
        let disk = DeviceCounters {
            major: 8,
            minor: 16,
            read_bytes: 4096,
            written_bytes: 8192,
            reads: 1,
            writes: 2,
        };
        assert_eq!(found.devices, [disk]);
        assert_eq!(found.huge_pages[0].max_usage, Some(2 << 20));
        assert_eq!((found.limits.cpu_quota, found.limits.cpu_shares), (None, Some(1024)));
        assert_eq!((found.limits.memory, found.limits.memory_reservation), (None, Some(4096)));
        assert_eq!(counters(|_| None, Stats::default()), Counters::default());
    }
}
