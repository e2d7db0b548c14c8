//! The resource usage of a cgroup, read on request (Documentation/admin-guide/cgroup-v1, cgroup-v2.rst). A figure
//! is `None` if its controller or file does not exist.

use std::path::Path;

use super::Cgroup;
use super::files::{number, read, value};
use super::psi::{Pressure, pressure};

/// The usage of a cgroup and everything below it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// Processor time, in nanoseconds.
    pub cpu: Option<u64>,
    /// Memory.
    pub memory: Option<Memory>,
    /// Processes and threads.
    pub processes: Option<u64>,
    /// The time that tasks have waited for processors, on v2.
    pub cpu_pressure: Option<Pressure>,
    /// The time that tasks have waited for memory, on v2.
    pub memory_pressure: Option<Pressure>,
    /// The time that tasks have waited for I/O, on v2.
    pub io_pressure: Option<Pressure>,
}

/// Memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// All accounted memory.
    pub usage: u64,
    /// The memory that cannot be reclaimed quickly: without inactive file pages.
    pub working_set: u64,
    /// Anonymous memory.
    pub anonymous: u64,
    /// Page faults.
    pub faults: u64,
    /// Major page faults, which needed I/O.
    pub major_faults: u64,
    /// The limit.
    pub limit: Option<u64>,
    /// Memory in swap, if it is accounted.
    pub swap: Option<u64>,
    /// The limit of swap.
    pub swap_limit: Option<u64>,
}

impl Cgroup {
    /// Returns the usage. If the cgroup does not exist, all figures are `None`.
    #[must_use]
    pub fn stats(&self) -> Stats {
        if self.v2 {
            return v2(&self.process_folder);
        }
        Stats {
            cpu: self.folder_of("cpuacct").and_then(|folder| number(&folder.join("cpuacct.usage"))),
            memory: self.folder_of("memory").and_then(memory_v1),
            processes: self.folder_of("pids").and_then(|folder| number(&folder.join("pids.current"))),
            ..Stats::default()
        }
    }
}

fn v2(folder: &Path) -> Stats {
    Stats {
        cpu: read(&folder.join("cpu.stat"))
            .and_then(|text| value(&text, "usage_usec"))
            .map(|usec| usec * 1000),
        memory: memory_v2(folder),
        processes: number(&folder.join("pids.current")),
        cpu_pressure: pressure(folder, "cpu.pressure"),
        memory_pressure: pressure(folder, "memory.pressure"),
        io_pressure: pressure(folder, "io.pressure"),
    }
}

fn memory_v2(folder: &Path) -> Option<Memory> {
    let usage = number(&folder.join("memory.current"))?;
    let stat = read(&folder.join("memory.stat")).unwrap_or_default();
    let of = |key| value(&stat, key).unwrap_or(0);
    Some(Memory {
        usage,
        working_set: usage.saturating_sub(of("inactive_file")),
        anonymous: of("anon"),
        faults: of("pgfault"),
        major_faults: of("pgmajfault"),
        // "max" is not a number and becomes `None`.
        limit: number(&folder.join("memory.max")),
        swap: number(&folder.join("memory.swap.current")),
        swap_limit: number(&folder.join("memory.swap.max")),
    })
}

fn memory_v1(folder: &Path) -> Option<Memory> {
    let usage = number(&folder.join("memory.usage_in_bytes"))?;
    let stat = read(&folder.join("memory.stat")).unwrap_or_default();
    let of = |key| value(&stat, key).unwrap_or(0);
    // The kernel shows the largest multiple of a page if there is no limit.
    let limit = |file: &str| number(&folder.join(file)).filter(|limit| *limit < 1 << 62);
    let both = number(&folder.join("memory.memsw.usage_in_bytes"));
    Some(Memory {
        usage,
        working_set: usage.saturating_sub(of("total_inactive_file")),
        anonymous: of("total_rss"),
        faults: of("total_pgfault"),
        major_faults: of("total_pgmajfault"),
        limit: limit("memory.limit_in_bytes"),
        swap: both.map(|both| both.saturating_sub(usage)),
        swap_limit: limit("memory.memsw.limit_in_bytes")
            .map(|both| both.saturating_sub(limit("memory.limit_in_bytes").unwrap_or(0))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::files::folder_with;

    #[test]
    fn figures_of_v2() {
        let folder = folder_with(&[
            ("cpu.stat", "usage_usec 2500\nuser_usec 2000\n"),
            ("memory.current", "1000\n"),
            ("memory.max", "max\n"),
            ("memory.stat", "anon 300\ninactive_file 400\npgfault 7\npgmajfault 1\n"),
            ("memory.swap.current", "5\n"),
            ("pids.current", "3\n"),
            (
                "io.pressure",
                "some avg10=1.50 avg60=0.00 avg300=0.00 total=42\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
            ),
        ]);
        let stats = v2(folder.path());
        assert_eq!((stats.cpu, stats.processes), (Some(2_500_000), Some(3)));
        let memory = stats.memory.unwrap();
        assert_eq!((memory.usage, memory.working_set, memory.anonymous), (1000, 600, 300));
        assert_eq!((memory.faults, memory.major_faults, memory.limit, memory.swap), (7, 1, None, Some(5)));
        let io = stats.io_pressure.unwrap();
        assert_eq!((io.some.avg10, io.some.total, io.full.total), (1.5, 42, 7));
        assert_eq!(stats.cpu_pressure, None);
    }

    #[test]
    fn figures_of_v1() {
        let folder = folder_with(&[
            ("memory.usage_in_bytes", "1000\n"),
            ("memory.memsw.usage_in_bytes", "1200\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory.stat", "rss 1\ntotal_rss 250\ntotal_inactive_file 2000\n"),
        ]);
        let memory = memory_v1(folder.path()).unwrap();
        assert_eq!(
            (memory.working_set, memory.anonymous, memory.limit, memory.swap),
            (0, 250, None, Some(200))
        );
        assert_eq!(v2(Path::new("/nonexistent")), Stats::default());
    }
}
