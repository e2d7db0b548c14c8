//! What a piece of work costs the daemon: processor time and its highest memory.

use std::fs;
use std::time::Duration;

/// `_SC_CLK_TCK`, which is 100 on every architecture that Linux still has a user for (time(7)).
const TICKS: u64 = 100;
/// What resets the highest memory (proc(5), `/proc/pid/clear_refs`).
const RESET_PEAK: &str = "5";

/// A daemon that is watched during one piece of work.
#[derive(Debug)]
pub(crate) struct Watched {
    pid: u32,
    before: Option<u64>,
}

/// What it cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cost {
    /// User and system time, that of ended children included.
    pub(crate) cpu: Duration,
    /// The highest resident memory since the watch began.
    pub(crate) peak_kb: u64,
}

impl Watched {
    /// From now on.
    pub(crate) fn start(pid: u32) -> Self {
        // Without the reset the figure would be that of the daemon's whole life: it would show in all that follows.
        drop(fs::write(format!("/proc/{pid}/clear_refs"), RESET_PEAK));
        Self { pid, before: ticks(pid) }
    }

    /// Until now; none where the daemon cannot be looked at.
    pub(crate) fn cost(&self) -> Option<Cost> {
        let spent = ticks(self.pid)?.checked_sub(self.before?)?;
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        Some(Cost { cpu: Duration::from_millis(spent * 1000 / TICKS), peak_kb: peak(&status)? })
    }
}

/// The time that all processors have worked since the machine's start (proc(5), `/proc/stat`): what a call costs beside the
/// daemon, in shims and programs that end, shows nowhere else. Nothing else may run meanwhile.
pub(crate) fn machine() -> Option<Duration> {
    let worked = worked(&fs::read_to_string("/proc/stat").ok()?)?;
    Some(Duration::from_millis(worked * 1000 / TICKS))
}

/// user, nice, system, irq and softirq.
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
    of_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// utime, stime, cutime and cstime, the fields 14 to 17; the name before them may have spaces (proc(5)).
fn of_stat(stat: &str) -> Option<u64> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    fields.get(11..15)?.iter().map(|field| field.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_peaks_are_read() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 100 20 3 1 20 0 9 0 5 6";
        assert_eq!(of_stat(stat), Some(124));
        assert_eq!(of_stat("7"), None);
        assert_eq!(worked("cpu  1 2 4 1000 1000 8 16 0 0 0\ncpu0 1 1\n"), Some(31));
        assert_eq!(worked("cpu  1 2\n"), None);
        assert_eq!(peak("Name:\tx\nVmHWM:\t   812 kB\n"), Some(812));
        assert!(Watched::start(std::process::id()).cost().is_some_and(|cost| cost.peak_kb > 0));
    }
}
