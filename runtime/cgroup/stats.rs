//! What a cgroup has used, read when somebody asks (Documentation/admin-guide/cgroup-v1, cgroup-v2.rst). A figure whose
//! controller or file is not there is missing.

use std::fs;
use std::path::Path;

use super::Cgroup;

/// The usage of a cgroup with all below it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// Processor time, in nanoseconds.
    pub cpu: Option<u64>,
    /// Memory.
    pub memory: Option<Memory>,
    /// Processes and threads.
    pub processes: Option<u64>,
    /// How long tasks have waited for processors, on v2.
    pub cpu_pressure: Option<Pressure>,
    /// How long tasks have waited for memory, on v2.
    pub memory_pressure: Option<Pressure>,
    /// How long tasks have waited for disks, on v2.
    pub io_pressure: Option<Pressure>,
}

/// Memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// All that is counted.
    pub usage: u64,
    /// The part that cannot be taken back at once: without files that were not used lately.
    pub working_set: u64,
    /// What belongs to no file.
    pub anonymous: u64,
    /// Pages that were asked for.
    pub faults: u64,
    /// Pages that had to be read.
    pub major_faults: u64,
    /// The most there may be.
    pub limit: Option<u64>,
    /// What is in swap, where that is counted.
    pub swap: Option<u64>,
    /// The most there may be in swap.
    pub swap_limit: Option<u64>,
}

/// Time in which tasks waited (Documentation/accounting/psi.rst).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// Some task.
    pub some: Waited,
    /// All tasks at once.
    pub full: Waited,
}

/// Shares of time in percent, and the sum in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Waited {
    /// Over ten seconds.
    pub avg10: f64,
    /// Over a minute.
    pub avg60: f64,
    /// Over five minutes.
    pub avg300: f64,
    /// Since it was made.
    pub total: u64,
}

impl Cgroup {
    /// What it has used. One that is not there has no figures.
    #[must_use]
    pub fn stats(&self) -> Stats {
        if self.v2 {
            return v2(&self.whole);
        }
        Stats {
            cpu: self.of("cpuacct").and_then(|folder| number(&folder.join("cpuacct.usage"))),
            memory: self.of("memory").and_then(memory_v1),
            processes: self.of("pids").and_then(|folder| number(&folder.join("pids.current"))),
            ..Stats::default()
        }
    }
}

fn v2(folder: &Path) -> Stats {
    let pressure = |name: &str| read(&folder.join(name)).map(|text| pressure(&text));
    Stats {
        cpu: read(&folder.join("cpu.stat"))
            .and_then(|text| value(&text, "usage_usec"))
            .map(|usec| usec * 1000),
        memory: memory_v2(folder),
        processes: number(&folder.join("pids.current")),
        cpu_pressure: pressure("cpu.pressure"),
        memory_pressure: pressure("memory.pressure"),
        io_pressure: pressure("io.pressure"),
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
        // "max" is no number.
        limit: number(&folder.join("memory.max")),
        swap: number(&folder.join("memory.swap.current")),
        swap_limit: number(&folder.join("memory.swap.max")),
    })
}

fn memory_v1(folder: &Path) -> Option<Memory> {
    let usage = number(&folder.join("memory.usage_in_bytes"))?;
    let stat = read(&folder.join("memory.stat")).unwrap_or_default();
    let of = |key| value(&stat, key).unwrap_or(0);
    // No limit is the largest multiple of a page.
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

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn number(path: &Path) -> Option<u64> {
    read(path)?.trim().parse().ok()
}

/// The value of a line `key value`.
fn value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Lines such as `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`.
fn pressure(text: &str) -> Pressure {
    let line = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind)).unwrap_or_default();
        let field =
            |name: &str| line.split_whitespace().find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
        let share = |name| field(name).and_then(|text| text.parse().ok()).unwrap_or_default();
        Waited {
            avg10: share("avg10"),
            avg60: share("avg60"),
            avg300: share("avg300"),
            total: field("total").and_then(|text| text.parse().ok()).unwrap_or_default(),
        }
    };
    Pressure { some: line("some"), full: line("full") }
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

    #[test]
    fn figures_of_v2() {
        let folder = folder(&[
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
        let folder = folder(&[
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
