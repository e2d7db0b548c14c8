//! All counters and limits of a cgroup, for metrics (Documentation/admin-guide/cgroup-v1, cgroup-v2.rst). [`Stats`] has the
//! few that are read often. A value is missing where its controller or file is missing.
//!
//! [`Stats`]: super::Stats

use std::fs;
use std::path::Path;

use super::stats::{number, read, value};
use super::{Cgroup, Stats, kill};

/// Largest limit that is a limit: v1 reports the absence of one as the largest multiple of a page.
const MOST: u64 = 1 << 62;

/// The counters and limits of a cgroup with all below it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counters {
    /// The values that the statistics also contain.
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

/// Reads and writes of a block device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceCounters {
    /// Major number of the device.
    pub major: u32,
    /// Minor number of the device.
    pub minor: u32,
    /// Bytes that were read.
    pub read_bytes: u64,
    /// Bytes that were written.
    pub written_bytes: u64,
    /// Completed reads.
    pub reads: u64,
    /// Completed writes.
    pub writes: u64,
}

/// Huge pages of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HugePages {
    /// The size, as the kernel names it: `2MB`.
    pub size: String,
    /// Bytes in use.
    pub usage: u64,
    /// Largest usage so far, where the kernel counts it (v1).
    pub max_usage: Option<u64>,
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
    /// Its counters. One that does not exist has none.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let stats = self.stats();
        if self.v2 { counters_v2(&self.whole, stats) } else { counters_v1(|name| self.of(name), stats) }
    }

    /// The processes in it and in all cgroups below it. It may be read while processes come and go.
    #[must_use]
    pub fn process_ids(&self) -> Vec<i32> {
        kill::processes(&self.whole).unwrap_or_default()
    }
}

fn counters_v2(folder: &Path, stats: Stats) -> Counters {
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
        kernel: value(&stat, "kernel").or_else(|| value(&stat, "kernel_stack")),
        max_usage: number(&folder.join("memory.peak")),
        limit_hits: value(&events, "max"),
        own_faults: value(&stat, "pgfault").unwrap_or(0),
        own_major_faults: value(&stat, "pgmajfault").unwrap_or(0),
    });
    let (cpu_quota, cpu_period) = read(&folder.join("cpu.max")).map(|text| cpu_max(&text)).unwrap_or_default();
    Counters {
        cpu_user: nanoseconds("user_usec"),
        cpu_system: nanoseconds("system_usec"),
        throttling,
        memory,
        oom_kills: value(&events, "oom_kill"),
        devices: read(&folder.join("io.stat")).map(|text| io_stat(&text)).unwrap_or_default(),
        huge_pages: huge_pages(folder, ".current", None),
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

fn counters_v1<'a>(of: impl Fn(&str) -> Option<&'a Path>, stats: Stats) -> Counters {
    let figure = |controller: &str, file: &str| number(&of(controller)?.join(file));
    let text = |controller: &str, file: &str| read(&of(controller)?.join(file)).unwrap_or_default().into();
    let limit = |file: &str| figure("memory", file).filter(|limit| *limit < MOST);
    let cpu: Option<String> = text("cpu", "cpu.stat");
    let throttling = cpu.and_then(|cpu| {
        Some(Throttling {
            periods: value(&cpu, "nr_periods")?,
            throttled_periods: value(&cpu, "nr_throttled").unwrap_or(0),
            throttled_time: value(&cpu, "throttled_time").unwrap_or(0),
        })
    });
    let memory = text("memory", "memory.stat").map(|stat: String| MemoryCounters {
        cache: value(&stat, "total_cache").unwrap_or(0),
        mapped_file: value(&stat, "total_mapped_file").unwrap_or(0),
        kernel: figure("memory", "memory.kmem.usage_in_bytes"),
        max_usage: figure("memory", "memory.max_usage_in_bytes"),
        limit_hits: figure("memory", "memory.failcnt"),
        own_faults: value(&stat, "pgfault").unwrap_or(0),
        own_major_faults: value(&stat, "pgmajfault").unwrap_or(0),
    });
    let bytes = text("blkio", "blkio.throttle.io_service_bytes_recursive").unwrap_or_default();
    let operations = text("blkio", "blkio.throttle.io_serviced_recursive").unwrap_or_default();
    Counters {
        cpu_user: figure("cpuacct", "cpuacct.usage_user"),
        cpu_system: figure("cpuacct", "cpuacct.usage_sys"),
        throttling,
        memory,
        oom_kills: text("memory", "memory.oom_control").and_then(|text: String| value(&text, "oom_kill")),
        devices: blkio(&bytes, &operations),
        huge_pages: of("hugetlb")
            .map(|folder| huge_pages(folder, ".usage_in_bytes", Some(".max_usage_in_bytes")))
            .unwrap_or_default(),
        threads_max: figure("pids", "pids.max"),
        limits: Limits {
            cpu_period: figure("cpu", "cpu.cfs_period_us"),
            // -1 means unlimited, and does not parse here.
            cpu_quota: figure("cpu", "cpu.cfs_quota_us"),
            cpu_shares: figure("cpu", "cpu.shares"),
            memory: limit("memory.limit_in_bytes"),
            memory_reservation: limit("memory.soft_limit_in_bytes"),
            swap: limit("memory.memsw.limit_in_bytes"),
        },
        stats,
    }
}

/// `cpu.max`: quota or `max`, and the period.
fn cpu_max(text: &str) -> (Option<u64>, Option<u64>) {
    let mut words = text.split_whitespace().map(|word| word.parse().ok());
    (words.next().flatten(), words.next().flatten())
}

/// The shares of v1 for a weight of v2, as the kubelet and cAdvisor convert them: 1 to 10,000 becomes 2 to 262,144.
fn shares_of(weight: u64) -> u64 {
    2 + weight.saturating_sub(1).saturating_mul(262_142) / 9999
}

/// Lines such as `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`.
fn io_stat(text: &str) -> Vec<DeviceCounters> {
    let device = |line: &str| {
        let mut words = line.split_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        let mut device =
            DeviceCounters { major: major.parse().ok()?, minor: minor.parse().ok()?, ..DeviceCounters::default() };
        for (key, figure) in words.filter_map(|word| word.split_once('=')) {
            let figure = figure.parse().unwrap_or(0);
            match key {
                "rbytes" => device.read_bytes = figure,
                "wbytes" => device.written_bytes = figure,
                "rios" => device.reads = figure,
                "wios" => device.writes = figure,
                _ => {}
            }
        }
        Some(device)
    };
    text.lines().filter_map(device).collect()
}

/// Lines such as `8:0 Read 4096` of two files: bytes, and operations.
fn blkio(bytes: &str, operations: &str) -> Vec<DeviceCounters> {
    let mut devices: Vec<DeviceCounters> = Vec::new();
    for (text, is_bytes) in [(bytes, true), (operations, false)] {
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (Some(numbers), Some(operation), Some(figure)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            let numbers = numbers.split_once(':').and_then(|(major, minor)| {
                Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
            });
            let (Some((major, minor)), Ok(figure)) = (numbers, figure.parse()) else { continue };
            let place = devices.iter().position(|device| (device.major, device.minor) == (major, minor));
            let place = place.unwrap_or_else(|| {
                devices.push(DeviceCounters { major, minor, ..DeviceCounters::default() });
                devices.len() - 1
            });
            let Some(device) = devices.get_mut(place) else { continue };
            match (operation, is_bytes) {
                ("Read", true) => device.read_bytes = figure,
                ("Write", true) => device.written_bytes = figure,
                ("Read", false) => device.reads = figure,
                ("Write", false) => device.writes = figure,
                _ => {}
            }
        }
    }
    devices
}

/// The files `hugetlb.SIZE.current` (v2) or `hugetlb.SIZE.usage_in_bytes` (v1) of a folder.
fn huge_pages(folder: &Path, usage: &str, max: Option<&str>) -> Vec<HugePages> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let pages = entries.filter_map(|entry| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(usage)?;
        // `hugetlb.SIZE.rsvd.current` counts reservations.
        if size.contains('.') {
            return None;
        }
        Some(HugePages {
            size: size.to_owned(),
            usage: number(&folder.join(&name))?,
            max_usage: max.and_then(|max| number(&folder.join(format!("hugetlb.{size}{max}")))),
        })
    });
    let mut pages: Vec<HugePages> = pages.collect();
    pages.sort_by(|left, right| left.size.cmp(&right.size));
    pages
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    const DISK: DeviceCounters =
        DeviceCounters { major: 8, minor: 16, read_bytes: 4096, written_bytes: 8192, reads: 1, writes: 2 };

    #[test]
    fn counters_of_v2() {
        let folder = folder(&[
            ("cpu.stat", "usage_usec 9\nuser_usec 5\nsystem_usec 4\nnr_periods 7\nnr_throttled 3\nthrottled_usec 2\n"),
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
        let counters = counters_v2(folder.path(), Stats { memory: Some(<_>::default()), ..Stats::default() });
        assert_eq!((counters.cpu_user, counters.cpu_system), (Some(5000), Some(4000)));
        let throttling = Throttling { periods: 7, throttled_periods: 3, throttled_time: 2000 };
        assert_eq!(counters.throttling, Some(throttling));
        let memory = counters.memory.unwrap();
        assert_eq!((memory.cache, memory.mapped_file, memory.kernel), (300, 200, Some(40)));
        assert_eq!((memory.max_usage, memory.limit_hits, memory.own_faults), (Some(2000), Some(5), 7));
        assert_eq!((counters.oom_kills, counters.threads_max), (Some(2), None));
        assert_eq!(counters.devices, [DISK, DeviceCounters { major: 7, ..DeviceCounters::default() }]);
        let huge = HugePages { size: "2MB".to_owned(), usage: 2 << 20, max_usage: None };
        assert_eq!(counters.huge_pages, [huge]);
        let limits = Limits {
            cpu_period: Some(100_000),
            cpu_quota: Some(20_000),
            cpu_shares: Some(2597),
            memory: None,
            memory_reservation: Some(4096),
            swap: None,
        };
        assert_eq!(counters.limits, limits);
    }

    #[test]
    fn counters_of_v1() {
        let folder = folder(&[
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
            ("blkio.throttle.io_service_bytes_recursive", "8:16 Read 4096\n8:16 Write 8192\n8:16 Total 1\nTotal 1\n"),
            ("blkio.throttle.io_serviced_recursive", "8:16 Read 1\n8:16 Write 2\nTotal 3\n"),
            ("hugetlb.2MB.usage_in_bytes", "0\n"),
            ("hugetlb.2MB.max_usage_in_bytes", "2097152\n"),
        ]);
        let counters = counters_v1(|_| Some(folder.path()), Stats::default());
        assert_eq!((counters.cpu_user, counters.cpu_system, counters.oom_kills), (Some(5), Some(4), Some(2)));
        assert_eq!(counters.throttling.unwrap().throttled_time, 2);
        let memory = counters.memory.unwrap();
        assert_eq!((memory.cache, memory.mapped_file, memory.limit_hits), (300, 200, Some(5)));
        assert_eq!((memory.own_faults, memory.kernel), (7, None));
        assert_eq!(counters.devices, [DISK]);
        assert_eq!(counters.huge_pages[0].max_usage, Some(2 << 20));
        assert_eq!((counters.limits.cpu_quota, counters.limits.cpu_shares), (None, Some(1024)));
        assert_eq!((counters.limits.memory, counters.limits.memory_reservation), (None, Some(4096)));
        assert_eq!(counters_v1(|_| None, Stats::default()), Counters::default());
    }
}
