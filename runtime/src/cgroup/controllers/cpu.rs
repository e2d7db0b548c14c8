//! Processor time: `cpu` and `cpuacct` of version 1 (Documentation/scheduler/sched-bwc.rst,
//! cgroup-v1/cpuacct.rst), `cpu` of version 2.

use oci_spec::runtime::{LinuxCpu, LinuxResources};

use crate::cgroup::files::{Reader, value};
use crate::cgroup::interface::Interface;
use crate::cgroup::limits::{LimitWrite, given, max_or};

/// The period of a quota that has none, in microseconds: the kernel's default.
const DEFAULT_PERIOD: u64 = 100_000;

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

/// All counters and limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CpuCounters {
    /// Processor time, in nanoseconds.
    pub(super) usage: Option<u64>,
    pub(super) user: Option<u64>,
    pub(super) system: Option<u64>,
    pub(super) throttling: Option<Throttling>,
    /// The period and quota, in microseconds.
    pub(super) period: Option<u64>,
    pub(super) quota: Option<u64>,
    /// Shares in the scale of version 1.
    pub(super) shares: Option<u64>,
}

/// Reads the processor time in nanoseconds.
pub(super) fn usage(reader: &Reader<'_>) -> Option<u64> {
    match reader.interface {
        Interface::V1 => reader.number("cpuacct", "cpuacct.usage"),
        Interface::V2 => nanoseconds(&reader.text("cpu", "cpu.stat")?, "usage_usec"),
    }
}

/// Reads all counters and limits.
pub(super) fn counters(reader: &Reader<'_>) -> CpuCounters {
    let stat = reader.text("cpu", "cpu.stat").unwrap_or_default();
    let throttling = |time: Option<u64>| {
        Some(Throttling {
            periods: value(&stat, "nr_periods")?,
            throttled_periods: value(&stat, "nr_throttled").unwrap_or(0),
            throttled_time: time.unwrap_or(0),
        })
    };
    match reader.interface {
        Interface::V1 => CpuCounters {
            usage: usage(reader),
            user: reader.number("cpuacct", "cpuacct.usage_user"),
            system: reader.number("cpuacct", "cpuacct.usage_sys"),
            throttling: throttling(value(&stat, "throttled_time")),
            period: reader.number("cpu", "cpu.cfs_period_us"),
            // Without a quota the file has -1, which `number` does not parse.
            quota: reader.number("cpu", "cpu.cfs_quota_us"),
            shares: reader.number("cpu", "cpu.shares"),
        },
        Interface::V2 => {
            let max = reader.text("cpu", "cpu.max").unwrap_or_default();
            // The quota or `max`, and the period.
            let mut words = max.split_whitespace().map(|word| word.parse().ok());
            let (quota, period) = (words.next().flatten(), words.next().flatten());
            CpuCounters {
                usage: nanoseconds(&stat, "usage_usec"),
                user: nanoseconds(&stat, "user_usec"),
                system: nanoseconds(&stat, "system_usec"),
                throttling: throttling(nanoseconds(&stat, "throttled_usec")),
                period,
                quota,
                shares: reader.number("cpu", "cpu.weight").map(shares_of),
            }
        }
    }
}

/// Returns a time of `cpu.stat` of version 2, which is in microseconds.
fn nanoseconds(stat: &str, key: &str) -> Option<u64> {
    value(stat, key).map(|microseconds| microseconds.saturating_mul(1000))
}

/// Returns the files that set the limits.
pub(super) fn limits(reader: &Reader<'_>, resources: &LinuxResources) -> Vec<LimitWrite> {
    let Some(cpu) = resources.cpu() else { return Vec::new() };
    match reader.interface {
        Interface::V1 => limits_v1(cpu),
        Interface::V2 => limits_v2(cpu),
    }
}

fn limits_v1(cpu: &LinuxCpu) -> Vec<LimitWrite> {
    let write = |limit, file, value: String| LimitWrite::new(limit, "cpu", file, value);
    let period = given(cpu.period()).map(|value| write("cpu.period", "cpu.cfs_period_us", value.to_string()));
    let rt_period = given(cpu.realtime_period()).map(|value| value.to_string());
    let rt_runtime = given(cpu.realtime_runtime()).map(|value| value.to_string());
    let writes = [
        given(cpu.shares()).map(|value| write("cpu.shares", "cpu.shares", value.to_string())),
        // With the former quota the new period can exceed the limit of the cgroup above. Then it is set after the
        // quota.
        period.map(LimitWrite::repeated),
        given(cpu.quota()).map(|value| write("cpu.quota", "cpu.cfs_quota_us", value.to_string())),
        rt_period.map(|value| write("cpu.realtimePeriod", "cpu.rt_period_us", value)),
        rt_runtime.map(|value| write("cpu.realtimeRuntime", "cpu.rt_runtime_us", value)),
    ];
    writes.into_iter().flatten().collect()
}

fn limits_v2(cpu: &LinuxCpu) -> Vec<LimitWrite> {
    let mut writes = Vec::new();
    if let Some(shares) = given(cpu.shares()) {
        writes.push(LimitWrite::new("cpu.shares", "cpu", "cpu.weight", weight_of(shares)));
    }
    let (quota, period) = (given(cpu.quota()), given(cpu.period()));
    if quota.is_some() || period.is_some() {
        let value = format!("{} {}", max_or(quota.unwrap_or(-1)), period.unwrap_or(DEFAULT_PERIOD));
        writes.push(LimitWrite::new("cpu.quota", "cpu", "cpu.max", value));
    }
    writes
}

/// Converts shares (2 to 262144) linearly to a weight (1 to 10000), with the formula that all runtimes use
/// (KEP-2254).
#[must_use]
pub fn weight_of(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    1 + (shares - 2) * 9999 / 262_142
}

/// Converts a weight of v2 (1 to 10,000) to shares of v1 (2 to 262,144) as cAdvisor does.
fn shares_of(weight: u64) -> u64 {
    2 + weight.saturating_sub(1).saturating_mul(262_142) / 9999
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxCpuBuilder, LinuxResourcesBuilder};

    use super::*;
    use crate::cgroup::files::with_files;

    #[test]
    fn counters_of_version_1() {
        let files = [
            ("cpuacct.usage", "9\n"),
            ("cpuacct.usage_user", "5\n"),
            ("cpuacct.usage_sys", "4\n"),
            ("cpu.stat", "nr_periods 7\nnr_throttled 3\nthrottled_time 2\n"),
            ("cpu.cfs_quota_us", "-1\n"),
            ("cpu.cfs_period_us", "100000\n"),
            ("cpu.shares", "1024\n"),
        ];
        with_files(Interface::V1, &files, |reader| {
            let expected = CpuCounters {
                usage: Some(9),
                user: Some(5),
                system: Some(4),
                throttling: Some(Throttling { periods: 7, throttled_periods: 3, throttled_time: 2 }),
                period: Some(100_000),
                quota: None,
                shares: Some(1024),
            };
            assert_eq!((usage(reader), counters(reader)), (Some(9), expected));
        });
    }

    #[test]
    fn counters_of_version_2() {
        let times = "usage_usec 9\nuser_usec 5\nsystem_usec 4\n";
        let stat = format!("{times}nr_periods 7\nnr_throttled 3\nthrottled_usec 2\n");
        let files = [("cpu.stat", stat.as_str()), ("cpu.max", "20000 100000\n"), ("cpu.weight", "100\n")];
        with_files(Interface::V2, &files, |reader| {
            let expected = CpuCounters {
                usage: Some(9000),
                user: Some(5000),
                system: Some(4000),
                throttling: Some(Throttling { periods: 7, throttled_periods: 3, throttled_time: 2000 }),
                period: Some(100_000),
                quota: Some(20_000),
                shares: Some(2597),
            };
            assert_eq!((usage(reader), counters(reader)), (Some(9000), expected));
        });
        with_files(Interface::V2, &[("cpu.stat", times), ("cpu.max", "max 100000\n")], |reader| {
            let found = counters(reader);
            assert_eq!((found.throttling, found.quota, found.period), (None, None, Some(100_000)));
        });
    }

    #[test]
    fn without_files_there_are_no_counters() {
        for interface in [Interface::V1, Interface::V2] {
            with_files(interface, &[], |reader| {
                assert_eq!((usage(reader), counters(reader)), (None, CpuCounters::default()));
            });
        }
    }

    #[test]
    fn a_quota_of_version_2_has_a_period() {
        let files = |interface, cpu: LinuxCpuBuilder| {
            let resources = LinuxResourcesBuilder::default().cpu(cpu.build().unwrap()).build().unwrap();
            with_files(interface, &[], |reader| {
                let writes = limits(reader, &resources).into_iter();
                writes.map(|write| format!("{}={}", write.file, write.value)).collect::<Vec<_>>()
            })
        };
        let cpu = LinuxCpuBuilder::default;
        assert_eq!(files(Interface::V2, cpu().period(50_000_u64)), ["cpu.max=max 50000"]);
        assert_eq!(files(Interface::V2, cpu().quota(-1_i64)), ["cpu.max=max 100000"]);
        let both = || cpu().period(50_000_u64).quota(-1_i64).realtime_runtime(7_i64);
        let expected = ["cpu.cfs_period_us=50000", "cpu.cfs_quota_us=-1", "cpu.rt_runtime_us=7"];
        assert_eq!(files(Interface::V1, both()), expected);
        assert_eq!(files(Interface::V2, both()), ["cpu.max=max 50000"]);
    }

    #[test]
    fn weights_are_linear() {
        assert_eq!((weight_of(2), weight_of(1024), weight_of(262_144)), (1, 39, 10_000));
        assert_eq!((weight_of(0), weight_of(u64::MAX)), (1, 10_000));
    }
}
