//! The metrics of a cgroup: processor time, memory, I/O, pressure and limits. As in cAdvisor, a value that the kernel
//! does not record is 0 if its controller exists, and an unlimited limit is 0.

use berth_runtime::cgroup::{Counters, Pressure};

use super::collector::Collector;
use super::descriptors::*;
use super::filesystem::DeviceNames;

const NANOSECONDS: u64 = 1_000_000_000;
const MICROSECONDS: u64 = 1_000_000;

/// Adds all metrics of a cgroup.
pub(super) fn add(collector: &mut Collector, counters: &Counters, names: &DeviceNames) {
    cpu(collector, counters);
    memory(collector, counters);
    huge_pages(collector, counters);
    devices(collector, counters, names);
    pressure(collector, counters.stats.cpu_pressure, &CPU_WAITING, &CPU_STALLED);
    pressure(collector, counters.stats.memory_pressure, &MEMORY_WAITING, &MEMORY_STALLED);
    pressure(collector, counters.stats.io_pressure, &IO_WAITING, &IO_STALLED);
    threads(collector, counters);
    limits(collector, counters);
}

fn cpu(collector: &mut Collector, counters: &Counters) {
    let seconds = |nanoseconds: Option<u64>| nanoseconds.map(|time| time / NANOSECONDS);
    collector.add_with(&CPU_USAGE, ["total"], seconds(counters.stats.cpu));
    collector.add(&CPU_USER, seconds(counters.cpu_user));
    collector.add(&CPU_SYSTEM, seconds(counters.cpu_system));
    // Without a quota nothing is throttled.
    let quota = counters.limits.cpu_quota;
    if let Some(throttling) = quota.and(counters.throttling) {
        collector.add(&CFS_PERIODS, throttling.periods);
        collector.add(&CFS_THROTTLED_PERIODS, throttling.throttled_periods);
        collector.add(&CFS_THROTTLED_TIME, throttling.throttled_time / NANOSECONDS);
    }
}

fn memory(collector: &mut Collector, counters: &Counters) {
    let (Some(stats), Some(memory)) = (counters.stats.memory, counters.memory) else { return };
    collector.add(&MEMORY_USAGE, stats.usage);
    collector.add(&MEMORY_WORKING_SET, stats.working_set);
    collector.add(&MEMORY_MAX_USAGE, memory.max_usage.unwrap_or(0));
    collector.add(&MEMORY_RSS, stats.anonymous);
    collector.add(&MEMORY_CACHE, memory.cache);
    collector.add(&MEMORY_MAPPED_FILE, memory.mapped_file);
    collector.add(&MEMORY_ACTIVE_FILE, memory.active_file);
    collector.add(&MEMORY_INACTIVE_FILE, memory.inactive_file);
    collector.add(&MEMORY_KERNEL, memory.kernel.unwrap_or(0));
    collector.add(&MEMORY_SWAP, stats.swap.unwrap_or(0));
    collector.add(&MEMORY_LIMIT_HITS, memory.limit_hits.unwrap_or(0));
    collector.add(&OOM_KILLS, counters.oom_kills.unwrap_or(0));
    collector.add_with(&MEMORY_FAULTS, ["pgfault", "container"], memory.own_faults);
    collector.add_with(&MEMORY_FAULTS, ["pgfault", "hierarchy"], stats.faults);
    collector.add_with(&MEMORY_FAULTS, ["pgmajfault", "container"], memory.own_major_faults);
    collector.add_with(&MEMORY_FAULTS, ["pgmajfault", "hierarchy"], stats.major_faults);
    let limits = counters.limits;
    collector.add(&SPEC_MEMORY_LIMIT, limits.memory.unwrap_or(0));
    collector.add(&SPEC_MEMORY_RESERVATION, limits.memory_reservation.unwrap_or(0));
    collector.add(&SPEC_MEMORY_SWAP, limits.swap.unwrap_or(0));
}

fn huge_pages(collector: &mut Collector, counters: &Counters) {
    for pages in &counters.huge_pages {
        collector.add_with(&HUGE_PAGES_USAGE, [&pages.size], pages.usage);
        collector.add_with(&HUGE_PAGES_MAX_USAGE, [&pages.size], pages.max_usage);
    }
}

fn devices(collector: &mut Collector, counters: &Counters, names: &DeviceNames) {
    for device in &counters.devices {
        let name = names.of(device.major, device.minor);
        let (major, minor) = (device.major.to_string(), device.minor.to_string());
        collector.add_with(&DEVICE_BYTES, [&name, &major, &minor, "Read"], device.read_bytes);
        collector.add_with(&DEVICE_BYTES, [&name, &major, &minor, "Write"], device.written_bytes);
        collector.add_with(&FS_READ_BYTES, [&name], device.read_bytes);
        collector.add_with(&FS_WRITTEN_BYTES, [&name], device.written_bytes);
        collector.add_with(&FS_READS, [&name], device.reads);
        collector.add_with(&FS_WRITES, [&name], device.writes);
    }
}

fn pressure(
    collector: &mut Collector,
    pressure: Option<Pressure>,
    waiting: &Descriptor<0>,
    stalled: &Descriptor<0>,
) {
    let Some(pressure) = pressure else { return };
    collector.add(waiting, pressure.some.total / MICROSECONDS);
    collector.add(stalled, pressure.full.total / MICROSECONDS);
}

fn threads(collector: &mut Collector, counters: &Counters) {
    let Some(threads) = counters.stats.processes else { return };
    collector.add(&THREADS, threads);
    collector.add(&THREADS_MAX, counters.threads_max.unwrap_or(0));
}

fn limits(collector: &mut Collector, counters: &Counters) {
    collector.add(&SPEC_CPU_PERIOD, counters.limits.cpu_period);
    collector.add(&SPEC_CPU_QUOTA, counters.limits.cpu_quota);
    collector.add(&SPEC_CPU_SHARES, counters.limits.cpu_shares);
}

#[cfg(test)]
mod tests {
    use berth_runtime::cgroup::{
        DeviceCounters, HugePages, Limits, Memory, MemoryCounters, StallTimes, Stats, Throttling,
    };

    use super::super::collector::SeriesLabels;
    use super::*;

    /// Returns the names of the metrics with their additional labels and values.
    fn metrics(counters: &Counters) -> Vec<(String, Vec<String>, u64)> {
        let mut collector = Collector::new(SeriesLabels::default(), 0);
        add(&mut collector, counters, &DeviceNames::default());
        let metrics = collector.finish().into_iter();
        metrics
            .map(|found| (found.name, found.label_values[6..].to_vec(), found.value.unwrap().value))
            .collect()
    }

    fn value(counters: &Counters, name: &str, labels: &[&str]) -> Option<u64> {
        let found =
            metrics(counters).into_iter().find(|(found, values, _)| found == name && values == labels);
        found.map(|(_, _, value)| value)
    }

    #[test]
    fn a_cgroup_without_controllers_has_no_metrics() {
        assert_eq!(metrics(&Counters::default()), []);
    }

    #[test]
    fn times_are_whole_seconds() {
        let total = |total| StallTimes { total, ..StallTimes::default() };
        let counters = Counters {
            stats: Stats {
                cpu: Some(2_900_000_000),
                io_pressure: Some(Pressure { some: total(3_500_000), full: total(1_000_000) }),
                ..Stats::default()
            },
            ..Counters::default()
        };
        assert_eq!(value(&counters, "container_cpu_usage_seconds_total", &["total"]), Some(2));
        assert_eq!(value(&counters, "container_pressure_io_waiting_seconds_total", &[]), Some(3));
        assert_eq!(value(&counters, "container_pressure_io_stalled_seconds_total", &[]), Some(1));
        assert_eq!(value(&counters, "container_pressure_cpu_waiting_seconds_total", &[]), None);
    }

    #[test]
    fn throttling_is_reported_only_with_a_quota() {
        let throttling = Throttling { periods: 5, throttled_periods: 2, throttled_time: 0 };
        let mut counters = Counters { throttling: Some(throttling), ..Counters::default() };
        assert_eq!(value(&counters, "container_cpu_cfs_periods_total", &[]), None);
        assert_eq!(value(&counters, "container_spec_cpu_quota", &[]), None);
        counters.limits.cpu_quota = Some(20_000);
        assert_eq!(value(&counters, "container_cpu_cfs_throttled_periods_total", &[]), Some(2));
        assert_eq!(value(&counters, "container_spec_cpu_quota", &[]), Some(20_000));
    }

    #[test]
    fn unlimited_memory_is_0_and_faults_have_a_scope() {
        let memory = Memory { usage: 7, faults: 9, ..Memory::default() };
        let counters = Counters {
            stats: Stats { memory: Some(memory), ..Stats::default() },
            memory: Some(MemoryCounters { own_faults: 4, ..MemoryCounters::default() }),
            limits: Limits { swap: Some(1 << 20), ..Limits::default() },
            ..Counters::default()
        };
        assert_eq!(value(&counters, "container_memory_usage_bytes", &[]), Some(7));
        assert_eq!(value(&counters, "container_memory_failures_total", &["pgfault", "container"]), Some(4));
        assert_eq!(value(&counters, "container_memory_failures_total", &["pgfault", "hierarchy"]), Some(9));
        assert_eq!(value(&counters, "container_spec_memory_limit_bytes", &[]), Some(0));
        assert_eq!(value(&counters, "container_spec_memory_swap_limit_bytes", &[]), Some(1 << 20));
    }

    #[test]
    fn devices_and_huge_pages_are_named() {
        // This device number is not assigned.
        let device = DeviceCounters { major: 4095, minor: 3, written_bytes: 8, ..DeviceCounters::default() };
        let pages = HugePages { size: "2MB".to_owned(), usage: 0, max_usage: None };
        let counters = Counters { devices: vec![device], huge_pages: vec![pages], ..Counters::default() };
        let labels = ["4095:3", "4095", "3", "Write"];
        assert_eq!(value(&counters, "container_blkio_device_usage_total", &labels), Some(8));
        assert_eq!(value(&counters, "container_fs_writes_bytes_total", &["4095:3"]), Some(8));
        assert_eq!(value(&counters, "container_hugetlb_usage_bytes", &["2MB"]), Some(0));
        assert_eq!(value(&counters, "container_hugetlb_max_usage_bytes", &["2MB"]), None);
    }
}
