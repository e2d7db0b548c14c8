//! The cost of an operation for the daemon: processor time and peak memory.

use std::fs;
use std::time::Duration;

/// The value of `_SC_CLK_TCK`. It is 100 on every architecture that Linux still supports in use (time(7)).
const TICKS: u64 = 100;
/// The value that resets the peak memory (proc(5), `/proc/pid/clear_refs`).
const RESET_PEAK: &str = "5";

/// A measurement of the daemon's cost during one operation.
#[derive(Debug)]
pub(crate) struct CostMeter {
    pid: u32,
    before: Option<u64>,
}

/// The cost of an operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cost {
    /// User and system time, including the time of exited children.
    pub(crate) cpu: Duration,
    /// The peak resident memory since the start of the measurement.
    pub(crate) peak_kb: u64,
}

impl CostMeter {
    /// Starts a measurement.
    pub(crate) fn start(pid: u32) -> Self {
        // Without the reset the peak would be that of the daemon's whole lifetime.
        drop(fs::write(format!("/proc/{pid}/clear_refs"), RESET_PEAK));
        Self { pid, before: ticks(pid) }
    }

    /// Returns the cost so far, or `None` if the daemon's procfs files cannot be read.
    pub(crate) fn cost(&self) -> Option<Cost> {
        let spent = ticks(self.pid)?.checked_sub(self.before?)?;
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        Some(Cost { cpu: Duration::from_millis(spent * 1000 / TICKS), peak_kb: peak(&status)? })
    }
}

/// Returns the time that all processors have worked since the start of the machine (proc(5), `/proc/stat`). Only this
/// figure includes shims and other programs that exit during a call. No other work may run on the machine meanwhile.
pub(crate) fn machine() -> Option<Duration> {
    let worked = worked(&fs::read_to_string("/proc/stat").ok()?)?;
    Some(Duration::from_millis(worked * 1000 / TICKS))
}

/// Returns the sum of user, nice, system, irq and softirq.
fn worked(stat: &str) -> Option<u64> {
    let all = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> = all.split_whitespace().map_while(|field| field.parse().ok()).collect();
    [0, 1, 2, 5, 6].iter().map(|place| fields.get(*place).copied()).sum()
}

fn peak(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

fn ticks(pid: u32) -> Option<u64> {
    cpu_ticks(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Returns the sum of utime, stime, cutime and cstime, the fields 14 to 17. The name before them can contain spaces
/// (proc(5)).
fn cpu_ticks(stat: &str) -> Option<u64> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    fields.get(11..15)?.iter().map(|field| field.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_peaks_are_read() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 100 20 3 1 20 0 9 0 5 6";
        assert_eq!(cpu_ticks(stat), Some(124));
        assert_eq!(cpu_ticks("7"), None);
        assert_eq!(worked("cpu  1 2 4 1000 1000 8 16 0 0 0\ncpu0 1 1\n"), Some(31));
        assert_eq!(worked("cpu  1 2\n"), None);
        assert_eq!(peak("Name:\tx\nVmHWM:\t   812 kB\n"), Some(812));
        assert!(CostMeter::start(std::process::id()).cost().is_some_and(|cost| cost.peak_kb > 0));
    }
}
