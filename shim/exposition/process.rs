//! The values of the daemon's process, under the names that the client libraries of Prometheus use.

use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// Reads the values when metrics are requested. A value that cannot be read is left out.
#[derive(Debug)]
pub(super) struct ProcessMetrics;

impl Collector for ProcessMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let time = ConstCounter::new(cpu_seconds());
        let help = "Total user and system CPU time spent in seconds";
        time.encode(encoder.encode_descriptor("process_cpu_seconds", help, None, time.metric_type())?)?;
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kibibytes = |name: &str| field(&status, name).map(|count| count * 1024.0);
        for (name, help, value) in [
            ("process_resident_memory_bytes", "Resident memory size in bytes", kibibytes("VmRSS:")),
            ("process_virtual_memory_bytes", "Virtual memory size in bytes", kibibytes("VmSize:")),
            ("process_threads", "Number of OS threads in the process", field(&status, "Threads:")),
            ("process_open_fds", "Number of open file descriptors", open_files()),
            ("process_max_fds", "Maximum number of open file descriptors", max_files()),
            (
                "process_start_time_seconds",
                "Start time of the process since unix epoch in seconds",
                start_time(),
            ),
        ] {
            if let Some(value) = value {
                let gauge = ConstGauge::new(value);
                gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
            }
        }
        Ok(())
    }
}

fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    std::time::Duration::try_from(time).unwrap_or_default().as_secs_f64()
}

/// Returns a number in `/proc/self/status` (proc_pid_status(5)).
fn field(status: &str, name: &str) -> Option<f64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    value.split_whitespace().next()?.parse().ok()
}

fn open_files() -> Option<f64> {
    let count = fs::read_dir("/proc/self/fd").ok()?.count();
    // The descriptor of the folder itself is one of them.
    u32::try_from(count.saturating_sub(1)).ok().map(f64::from)
}

fn max_files() -> Option<f64> {
    match getrlimit(Resource::Nofile).current {
        Some(limit) => Some(u32::try_from(limit).map_or(f64::INFINITY, f64::from)),
        None => Some(f64::INFINITY),
    }
}

/// Returns the start of the process in seconds since the epoch: its start in clock ticks after the boot
/// (proc_pid_stat(5), `starttime`), and the time of the boot (proc_stat(5), `btime`).
fn start_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program may contain spaces; it is the second field, in parentheses.
    let (_, after_name) = stat.rsplit_once(") ")?;
    let ticks: f64 = after_name.split(' ').nth(19)?.parse().ok()?;
    let boot = field(&fs::read_to_string("/proc/stat").ok()?, "btime ")?;
    let per_second = u32::try_from(rustix::param::clock_ticks_per_second()).ok()?;
    Some(boot + ticks / f64::from(per_second))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_started_in_the_last_day() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let age = now - start_time().unwrap();
        assert!((-2.0..86_400.0).contains(&age), "{age}");
        assert!(cpu_seconds() < 86_400.0);
    }

    #[test]
    fn open_files_are_counted() {
        let before = open_files().unwrap();
        let files: Vec<_> = (0..50).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        assert!(open_files().unwrap() >= before + 10.0, "other tests open and close files, too");
        drop(files);
        assert!(max_files().unwrap() > before);
    }
}
