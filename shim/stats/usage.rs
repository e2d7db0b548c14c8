//! The figures of a cgroup in the CRI's words.

use berth_proto::v1::{
    CpuUsage, IoUsage, MemoryUsage, ProcessUsage, PsiData, PsiStats, SwapUsage, UInt64Value,
};
use berth_runtime::cgroup::{Pressure, StallTimes, Stats};

/// When the figures were read, and as whose.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading<'a> {
    /// Nanoseconds since the epoch.
    pub(super) at: i64,
    pub(super) stats: &'a Stats,
    /// Billionths of a core.
    pub(super) nano_cores: Option<u64>,
}

pub(super) fn value(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

impl Reading<'_> {
    pub(super) fn cpu(&self) -> Option<CpuUsage> {
        let nanoseconds = self.stats.cpu?;
        Some(CpuUsage {
            timestamp: self.at,
            usage_core_nano_seconds: value(nanoseconds),
            usage_nano_cores: self.nano_cores.and_then(value),
            psi: self.stats.cpu_pressure.map(pressure),
        })
    }

    pub(super) fn memory(&self) -> Option<MemoryUsage> {
        let memory = self.stats.memory?;
        Some(MemoryUsage {
            timestamp: self.at,
            working_set_bytes: value(memory.working_set),
            // Without a limit there is no telling (CRI `MemoryUsage.available_bytes`).
            available_bytes: memory.limit.and_then(|limit| value(limit.saturating_sub(memory.working_set))),
            usage_bytes: value(memory.usage),
            rss_bytes: value(memory.anonymous),
            page_faults: value(memory.faults),
            major_page_faults: value(memory.major_faults),
            psi: self.stats.memory_pressure.map(pressure),
        })
    }

    pub(super) fn swap(&self) -> Option<SwapUsage> {
        let memory = self.stats.memory?;
        let swap = memory.swap?;
        Some(SwapUsage {
            timestamp: self.at,
            swap_available_bytes: memory.swap_limit.and_then(|limit| value(limit.saturating_sub(swap))),
            swap_usage_bytes: value(swap),
        })
    }

    pub(super) fn processes(&self) -> Option<ProcessUsage> {
        Some(ProcessUsage { timestamp: self.at, process_count: value(self.stats.processes?) })
    }

    pub(super) fn io(&self) -> Option<IoUsage> {
        Some(IoUsage { timestamp: self.at, psi: Some(pressure(self.stats.io_pressure?)) })
    }
}

/// The kernel counts microseconds (Documentation/accounting/psi.rst), the CRI nanoseconds (CRI `PsiData.Total`).
fn pressure(pressure: Pressure) -> PsiStats {
    let data = |waited: StallTimes| PsiData {
        total: waited.total.saturating_mul(1000),
        avg10: waited.avg10,
        avg60: waited.avg60,
        avg300: waited.avg300,
    };
    PsiStats { full: Some(data(pressure.full)), some: Some(data(pressure.some)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_told_in_nanoseconds() {
        let waited = |total| StallTimes { avg10: 1.5, total, ..StallTimes::default() };
        let told = pressure(Pressure { some: waited(42), full: waited(u64::MAX) });
        assert_eq!((told.some.unwrap().total, told.some.unwrap().avg10), (42_000, 1.5));
        assert_eq!(told.full.unwrap().total, u64::MAX);
    }
}
