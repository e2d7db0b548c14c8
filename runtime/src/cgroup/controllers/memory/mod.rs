//! Memory (Documentation/admin-guide/cgroup-v1/memory.rst, cgroup-v2.rst).

mod limits;

pub(super) use limits::limits;

use crate::cgroup::files::{Reader, value};
use crate::cgroup::interface::Interface;
use crate::oom_kills;

const CONTROLLER: &str = "memory";

/// The smallest value that is not a limit: without one version 1 shows the largest multiple of a page.
const UNLIMITED: u64 = 1 << 62;

/// The lines of `memory.stat` of version 1 with the lowest limit of the cgroup and those above it: of memory, and of
/// memory and swap together.
const V1_LOWEST_LIMIT: &str = "hierarchical_memory_limit";
const V1_LOWEST_SWAP_LIMIT: &str = "hierarchical_memsw_limit";

/// The names of files, and of the lines of `memory.stat`.
#[derive(Debug)]
struct MemoryNames {
    usage: &'static str,
    max_usage: &'static str,
    limit: &'static str,
    /// The usage above which memory is reclaimed first.
    soft_limit: &'static str,
    /// The limit of swap; on v1 of memory and swap together.
    swap_limit: &'static str,
    /// The file that counts OOM kills.
    events: &'static str,
    cache: &'static str,
    mapped_file: &'static str,
    active_file: &'static str,
    inactive_file: &'static str,
    anonymous: &'static str,
    faults: &'static str,
    major_faults: &'static str,
}

/// The lines with `total_` include the cgroups below.
const V1: MemoryNames = MemoryNames {
    usage: "memory.usage_in_bytes",
    max_usage: "memory.max_usage_in_bytes",
    limit: "memory.limit_in_bytes",
    soft_limit: "memory.soft_limit_in_bytes",
    swap_limit: "memory.memsw.limit_in_bytes",
    events: "memory.oom_control",
    cache: "total_cache",
    mapped_file: "total_mapped_file",
    active_file: "total_active_file",
    inactive_file: "total_inactive_file",
    anonymous: "total_rss",
    faults: "total_pgfault",
    major_faults: "total_pgmajfault",
};

const V2: MemoryNames = MemoryNames {
    usage: "memory.current",
    max_usage: "memory.peak",
    limit: "memory.max",
    soft_limit: "memory.high",
    swap_limit: "memory.swap.max",
    events: "memory.events",
    cache: "file",
    mapped_file: "file_mapped",
    active_file: "active_file",
    inactive_file: "inactive_file",
    anonymous: "anon",
    faults: "pgfault",
    major_faults: "pgmajfault",
};

impl MemoryNames {
    const fn of(interface: Interface) -> &'static Self {
        match interface {
            Interface::V1 => &V1,
            Interface::V2 => &V2,
        }
    }
}

/// Returns the name of the file that counts OOM kills.
pub(in crate::cgroup) const fn oom_file(interface: Interface) -> &'static str {
    MemoryNames::of(interface).events
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
    /// The limit of memory. None: unlimited.
    pub limit: Option<u64>,
    /// Memory in swap, if it is accounted.
    pub swap: Option<u64>,
    /// The limit of swap.
    pub swap_limit: Option<u64>,
}

/// Memory by kind, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryCounters {
    /// Pages of files.
    pub cache: u64,
    /// Files that are mapped into processes.
    pub mapped_file: u64,
    /// File pages that were used recently.
    pub active_file: u64,
    /// File pages that are reclaimed first.
    pub inactive_file: u64,
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

/// All counters and limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct MemoryReading {
    pub(super) usage: Option<Memory>,
    pub(super) counters: Option<MemoryCounters>,
    pub(super) oom_kills: Option<u64>,
    pub(super) limit: Option<u64>,
    pub(super) soft_limit: Option<u64>,
    /// The limit of swap; on v1 of memory and swap together.
    pub(super) swap_limit: Option<u64>,
}

/// The values of the files that both usage and counters need.
struct CommonValues<'r> {
    reader: &'r Reader<'r>,
    names: &'static MemoryNames,
    /// `memory.stat`.
    stat: Option<String>,
    limit: Option<u64>,
    swap_limit: Option<u64>,
}

impl<'r> CommonValues<'r> {
    fn read(reader: &'r Reader<'r>) -> Self {
        let names = MemoryNames::of(reader.interface);
        let stat = reader.text(CONTROLLER, "memory.stat");
        // Version 1 shows the lowest limit of the cgroup and those above: if there is none, no file is read for it.
        let has_limit = |key| match (reader.interface, &stat) {
            (Interface::V1, Some(stat)) => value(stat, key).is_some_and(|limit| limit < UNLIMITED),
            _ => true,
        };
        let limit_of = |key, file| if has_limit(key) { limit(reader, file) } else { None };
        let (own, swap) =
            (limit_of(V1_LOWEST_LIMIT, names.limit), limit_of(V1_LOWEST_SWAP_LIMIT, names.swap_limit));
        Self { reader, names, stat, limit: own, swap_limit: swap }
    }

    /// Returns the value of a line of `memory.stat`.
    fn stat(&self, key: &str) -> u64 {
        self.stat.as_ref().and_then(|stat| value(stat, key)).unwrap_or(0)
    }

    fn usage(&self) -> Option<Memory> {
        let usage = self.reader.number(CONTROLLER, self.names.usage)?;
        let (swap, swap_limit) = match self.reader.interface {
            Interface::V1 => self.swap_v1(),
            Interface::V2 => (self.reader.number(CONTROLLER, "memory.swap.current"), self.swap_limit),
        };
        Some(Memory {
            usage,
            working_set: usage.saturating_sub(self.stat(self.names.inactive_file)),
            anonymous: self.stat(self.names.anonymous),
            faults: self.stat(self.names.faults),
            major_faults: self.stat(self.names.major_faults),
            limit: self.limit,
            swap,
            swap_limit,
        })
    }

    /// Returns the usage and limit of swap alone. Version 1 limits the sum of memory and swap.
    fn swap_v1(&self) -> (Option<u64>, Option<u64>) {
        // A kernel that does not account swap shows no limit.
        let accounted = self.stat.as_ref().is_some_and(|stat| value(stat, V1_LOWEST_SWAP_LIMIT).is_some());
        let limit = self.swap_limit.map(|both| both.saturating_sub(self.limit.unwrap_or(0)));
        (accounted.then(|| self.stat("total_swap")), limit)
    }

    fn counters(&self, limit_hits: Option<u64>) -> Option<MemoryCounters> {
        let stat = self.stat.as_ref()?;
        let kernel = match self.reader.interface {
            Interface::V1 => self.reader.number(CONTROLLER, "memory.kmem.usage_in_bytes"),
            Interface::V2 => value(stat, "kernel").or_else(|| value(stat, "kernel_stack")),
        };
        Some(MemoryCounters {
            cache: self.stat(self.names.cache),
            mapped_file: self.stat(self.names.mapped_file),
            active_file: self.stat(self.names.active_file),
            inactive_file: self.stat(self.names.inactive_file),
            kernel,
            max_usage: self.reader.number(CONTROLLER, self.names.max_usage),
            limit_hits,
            own_faults: self.stat("pgfault"),
            own_major_faults: self.stat("pgmajfault"),
        })
    }
}

/// Reads a limit.
fn limit(reader: &Reader<'_>, file: &str) -> Option<u64> {
    reader.number(CONTROLLER, file).filter(|limit| *limit < UNLIMITED)
}

/// Reads the usage.
pub(super) fn usage(reader: &Reader<'_>) -> Option<Memory> {
    CommonValues::read(reader).usage()
}

/// Reads all counters and limits.
pub(super) fn counters(reader: &Reader<'_>) -> MemoryReading {
    let common = CommonValues::read(reader);
    let Some(usage) = common.usage() else { return MemoryReading::default() };
    let events = reader.text(CONTROLLER, common.names.events).unwrap_or_default();
    let limit_hits = match reader.interface {
        Interface::V1 => reader.number(CONTROLLER, "memory.failcnt"),
        Interface::V2 => value(&events, "max"),
    };
    MemoryReading {
        usage: Some(usage),
        counters: common.counters(limit_hits),
        oom_kills: oom_kills::parse(&events),
        limit: common.limit,
        soft_limit: limit(reader, common.names.soft_limit),
        swap_limit: common.swap_limit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::files::with_files;

    #[test]
    fn counters_of_version_1() {
        let own = "cache 1\nrss 1\npgfault 7\npgmajfault 1\n";
        let limits =
            "hierarchical_memory_limit 9223372036854771712\nhierarchical_memsw_limit 9223372036854771712\n";
        let total = "total_cache 300\ntotal_rss 250\ntotal_mapped_file 200\ntotal_inactive_file 2000\ntotal_pgfault 9\ntotal_swap 200\n";
        let files = [
            ("memory.usage_in_bytes", "1000\n"),
            ("memory.max_usage_in_bytes", "2000\n"),
            ("memory.memsw.limit_in_bytes", "1\n"),
            ("memory.limit_in_bytes", "1\n"),
            ("memory.soft_limit_in_bytes", "4096\n"),
            ("memory.failcnt", "5\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
            ("memory.stat", &format!("{own}{limits}{total}")),
        ];
        with_files(Interface::V1, &files, |reader| {
            let found = counters(reader);
            assert_eq!(usage(reader), found.usage);
            let memory = found.usage.unwrap();
            assert_eq!((memory.usage, memory.working_set, memory.anonymous), (1000, 0, 250));
            assert_eq!((memory.faults, memory.swap, memory.swap_limit), (9, Some(200), None));
            let counters = found.counters.unwrap();
            assert_eq!((counters.cache, counters.mapped_file, counters.inactive_file), (300, 200, 2000));
            assert_eq!((counters.own_faults, counters.own_major_faults, counters.kernel), (7, 1, None));
            assert_eq!((counters.max_usage, counters.limit_hits), (Some(2000), Some(5)));
            assert_eq!((found.oom_kills, found.limit, found.soft_limit), (Some(2), None, Some(4096)));
        });
    }

    #[test]
    fn counters_of_version_2() {
        let files = [
            ("memory.current", "1000\n"),
            ("memory.peak", "2000\n"),
            ("memory.max", "max\n"),
            ("memory.high", "4096\n"),
            ("memory.swap.current", "5\n"),
            ("memory.swap.max", "50\n"),
            ("memory.events", "low 0\nhigh 0\nmax 5\noom 1\noom_kill 2\n"),
            (
                "memory.stat",
                "anon 300\nfile 350\nkernel 40\nfile_mapped 200\ninactive_file 400\npgfault 7\npgmajfault 1\n",
            ),
        ];
        with_files(Interface::V2, &files, |reader| {
            let found = counters(reader);
            assert_eq!(usage(reader), found.usage);
            let memory = found.usage.unwrap();
            assert_eq!((memory.usage, memory.working_set, memory.anonymous), (1000, 600, 300));
            assert_eq!((memory.faults, memory.major_faults), (7, 1));
            assert_eq!((memory.limit, memory.swap, memory.swap_limit), (None, Some(5), Some(50)));
            let counters = found.counters.unwrap();
            assert_eq!((counters.cache, counters.mapped_file, counters.kernel), (350, 200, Some(40)));
            assert_eq!(
                (counters.max_usage, counters.limit_hits, counters.own_faults),
                (Some(2000), Some(5), 7)
            );
            assert_eq!(
                (found.oom_kills, found.soft_limit, found.swap_limit),
                (Some(2), Some(4096), Some(50))
            );
        });
    }

    #[test]
    fn swap_of_version_1_is_the_part_above_memory() {
        let read = |stat: &str, limit: &str| {
            let both = [("memory.limit_in_bytes", limit), ("memory.memsw.limit_in_bytes", "1500\n")];
            let files = [both[0], both[1], ("memory.usage_in_bytes", "900\n"), ("memory.stat", stat)];
            with_files(Interface::V1, &files, |reader| {
                let memory = usage(reader).unwrap();
                (memory.limit, memory.swap, memory.swap_limit)
            })
        };
        let stat = "hierarchical_memory_limit 800\nhierarchical_memsw_limit 1200\ntotal_swap 7\n";
        assert_eq!(read(stat, "1000\n"), (Some(1000), Some(7), Some(500)));
        // The cgroup above has a limit, this one has none.
        assert_eq!(read(stat, "9223372036854771712\n"), (None, Some(7), Some(1500)));
        assert_eq!(read("hierarchical_memory_limit 800\n", "1000\n"), (Some(1000), None, None));
    }

    #[test]
    fn without_files_there_are_no_counters() {
        for interface in [Interface::V1, Interface::V2] {
            with_files(interface, &[], |reader| {
                assert_eq!((usage(reader), counters(reader)), (None, MemoryReading::default()));
            });
        }
    }
}
