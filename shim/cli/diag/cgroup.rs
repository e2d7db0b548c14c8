//! The processes of a cgroup, and its usage and limits.

use berth_runtime::cgroup::{Cgroup, CgroupPath, Counters, Hierarchies};

use super::page::Figure;
use crate::cli::format::{duration, size};
use std::time::Duration;

/// A cgroup as it is now.
#[derive(Clone, Debug, Default)]
pub(super) struct CgroupUsage {
    /// The processes, without those of execs.
    pub(super) pids: Vec<i32>,
    /// The processes of each exec, by its name.
    pub(super) execs: Vec<(String, Vec<i32>)>,
    pub(super) is_frozen: bool,
    pub(super) counters: Counters,
}

/// Reads a cgroup by its recorded path. A cgroup that does not exist is empty.
pub(super) fn read(path: &str) -> Result<CgroupUsage, String> {
    let hierarchies =
        Hierarchies::detect().map_err(|error| format!("failed to detect cgroup hierarchies: {error}"))?;
    let parsed = CgroupPath::from_recorded(path).map_err(|error| error.to_string())?;
    let cgroup = Cgroup::open(&hierarchies, &parsed);
    let execs = cgroup.exec_processes().map_err(|error| error.to_string())?;
    let mut pids = cgroup.processes().map_err(|error| error.to_string())?;
    pids.retain(|pid| !execs.iter().any(|(_, of_exec)| of_exec.contains(pid)));
    Ok(CgroupUsage { pids, execs, is_frozen: cgroup.is_frozen(), counters: cgroup.counters() })
}

/// Returns usage and limits for people.
pub(super) fn figures(counters: &Counters) -> Vec<Figure> {
    let figure = |what: &'static str, used: Option<String>, limit: Option<String>| {
        let limit = limit.unwrap_or_default();
        used.map(|used| Figure { what, used, limit })
    };
    let (stats, limits) = (&counters.stats, &counters.limits);
    let nanoseconds = |time: u64| duration(Duration::from_nanos(time));
    let quota = limits.cpu_quota.zip(limits.cpu_period).and_then(|(quota, period)| {
        let millicores = quota.checked_mul(1000)?.checked_div(period)?;
        Some(format!("{millicores}m"))
    });
    let throttled = counters.throttling.filter(|throttling| throttling.throttled_periods > 0);
    let throttled = throttled.map(|throttling| {
        format!(
            "{} in {} of {} periods",
            nanoseconds(throttling.throttled_time),
            throttling.throttled_periods,
            throttling.periods
        )
    });
    let memory = stats.memory;
    let pressure = [
        ("cpu waits (10 s)", stats.cpu_pressure),
        ("memory waits (10 s)", stats.memory_pressure),
        ("io waits (10 s)", stats.io_pressure),
    ];
    let figures = [
        figure("cpu time", stats.cpu.map(nanoseconds), quota),
        figure("cpu throttled", throttled, None),
        figure("memory", memory.map(|memory| size(memory.usage)), limits.memory.map(size)),
        figure("working set", memory.map(|memory| size(memory.working_set)), None),
        figure("swap", memory.and_then(|memory| memory.swap).map(size), limits.swap.map(size)),
        figure("oom kills", counters.oom_kills.map(|kills| kills.to_string()), None),
        figure(
            "tasks",
            stats.processes.map(|tasks| tasks.to_string()),
            counters.threads_max.map(|most| most.to_string()),
        ),
    ];
    let waits = pressure
        .into_iter()
        .filter_map(|(what, waits)| figure(what, Some(format!("{:.1}%", waits?.some.avg10)), None));
    figures.into_iter().flatten().chain(waits).collect()
}

#[cfg(test)]
mod tests {
    use berth_runtime::cgroup::{Limits, Memory, Stats, Throttling};

    use super::*;

    #[test]
    fn usage_is_beside_its_limit() {
        let memory =
            Memory { usage: 3 << 20, working_set: 1 << 20, limit: Some(64 << 20), ..Memory::default() };
        let counters = Counters {
            stats: Stats { cpu: Some(12_000_000_000), memory: Some(memory), ..Stats::default() },
            throttling: Some(Throttling { periods: 9, throttled_periods: 4, throttled_time: 1_500_000_000 }),
            limits: Limits {
                cpu_quota: Some(50_000),
                cpu_period: Some(100_000),
                memory: Some(64 << 20),
                ..Limits::default()
            },
            ..Counters::default()
        };
        let lines: Vec<String> = figures(&counters)
            .iter()
            .map(|figure| format!("{} {} {}", figure.what, figure.used, figure.limit))
            .collect();
        assert_eq!(
            lines,
            [
                "cpu time 12s 500m",
                "cpu throttled 1.5s in 4 of 9 periods ",
                "memory 3.0 MiB 64.0 MiB",
                "working set 1.0 MiB "
            ]
        );
        assert!(figures(&Counters::default()).is_empty());
    }
}
