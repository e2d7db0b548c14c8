//! The metrics of processes: their number, file descriptors, sockets and limits (proc_pid_fd(5), proc_pid_limits(5)).

use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};

use berth_runtime::cgroup::{Cgroup, Members};
use berth_runtime::sys::fs::read_records;
use rustix::fs::{CWD, Mode, OFlags, RawDir, openat, readlinkat_raw};

use super::collector::Collector;
use super::descriptors::{FILE_DESCRIPTORS, PROCESSES, SOCKETS, ULIMITS};
use crate::stats::once::OncePerKey;

/// The most file descriptors that are counted in one pod. Counting takes about a second per million.
const MAX_COUNTED: u64 = 1_000_000;

/// The depth below a pod's or container's cgroup up to which each cgroup is counted once. Deeper ones are counted with
/// the cgroup at this depth: a container may nest its cgroups as deep as a path can be long.
const MAX_DEPTH: usize = 32;

/// The size of a buffer for names of descriptors: a few hundred of them.
const NAMES: usize = 8 << 10;

/// The start of the target of a descriptor that is a socket (proc_pid_fd(5)).
const SOCKET: &[u8] = b"socket:";

/// Open file descriptors, and how many of them are sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Open {
    descriptors: u64,
    sockets: u64,
}

/// The number of file descriptors that may still be counted for a pod.
#[derive(Debug)]
pub(super) struct Budget(u64);

impl Default for Budget {
    fn default() -> Self {
        Self(MAX_COUNTED)
    }
}

/// The processes in a cgroup and below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tally {
    processes: u64,
    /// Their descriptors, or `None` if there are too many to count.
    open: Option<Open>,
}

impl Tally {
    fn of(pids: &[i32], budget: &mut Budget) -> Self {
        let mut sum = Some(Open::default());
        for &pid in pids {
            sum = sum.and_then(|sum| Some(sum.plus(count(pid, budget)?)));
        }
        Self { processes: u64::try_from(pids.len()).unwrap_or(u64::MAX), open: sum }
    }

    fn plus(self, more: Self) -> Self {
        let open = self.open.zip(more.open).map(|(open, more)| open.plus(more));
        Self { processes: self.processes.saturating_add(more.processes), open }
    }
}

impl Open {
    fn plus(self, more: Self) -> Self {
        let Self { descriptors, sockets } = self;
        Self { descriptors: descriptors + more.descriptors, sockets: sockets + more.sockets }
    }
}

/// The processes of the cgroups of one request. Each cgroup is read once, and so is each process in it: a container's
/// cgroup is below that of its pod, and several pods can share one.
#[derive(Debug, Default)]
pub(super) struct Census {
    cgroups: OncePerKey<PathBuf, Tally>,
}

impl Census {
    /// Returns the processes in the folder of a cgroup and below.
    fn of(&self, folder: &Path, depth: usize, budget: &mut Budget) -> Tally {
        self.cgroups.get(folder.to_owned(), || {
            let mut members = Members::of(folder).unwrap_or_default();
            if depth >= MAX_DEPTH {
                while let Some(folder) = members.below.pop() {
                    let more = Members::of(&folder).unwrap_or_default();
                    members.pids.extend(more.pids);
                    members.below.extend(more.below);
                }
            }
            let own = Tally::of(&members.pids, budget);
            members.below.iter().fold(own, |sum, below| sum.plus(self.of(below, depth + 1, budget)))
        })
    }
}

/// Counts the descriptors of a process, or returns `None` if there are too many. A process that has ended has none.
fn count(pid: i32, budget: &mut Budget) -> Option<Open> {
    let mut open = Open::default();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(folder) = openat(CWD, format!("/proc/{pid}/fd"), flags, Mode::empty()) else { return Some(open) };
    let mut names = [MaybeUninit::uninit(); NAMES];
    let mut entries = RawDir::new(&folder, &mut names);
    while let Some(Ok(entry)) = entries.next() {
        // The other entries are `.` and `..`.
        if !entry.file_name().to_bytes().first().is_some_and(u8::is_ascii_digit) {
            continue;
        }
        budget.0 = budget.0.checked_sub(1)?;
        open.descriptors += 1;
        let mut start = [MaybeUninit::uninit(); SOCKET.len()];
        let target = readlinkat_raw(&folder, entry.file_name(), &mut start[..]);
        open.sockets += u64::from(target.is_ok_and(|(start, _)| *start == *SOCKET));
    }
    Some(open)
}

/// Adds the metrics of the processes in a cgroup and below. A cgroup without processes is being removed and has none.
pub(super) fn add(collector: &mut Collector, census: &Census, cgroup: &Cgroup, budget: &mut Budget) {
    let tally = census.of(cgroup.process_folder(), 0, budget);
    if tally.processes == 0 {
        return;
    }
    collector.add(&PROCESSES, tally.processes);
    if let Some(open) = tally.open {
        collector.add(&FILE_DESCRIPTORS, open.descriptors);
        collector.add(&SOCKETS, open.sockets);
    }
}

/// Adds the soft limits of a container's first process.
pub(super) fn add_limits(collector: &mut Collector, pid: i32) {
    let limits = read_records(CWD, format!("/proc/{pid}/limits")).unwrap_or_default();
    collector.add_with(&ULIMITS, ["max_open_files"], max_open_files(&limits));
}

/// Parses the soft limit in a line such as `Max open files  1024  524288  files`.
fn max_open_files(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// The kernel assigns no pid as high as this (proc_sys_kernel(5), `pid_max`).
    const ENDED: i32 = i32::MAX;

    /// Creates folders with lists of processes, in place of cgroups.
    fn cgroups(lists: &[(&str, &[i32])]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (folder, pids) in lists {
            let text: String = pids.iter().map(|pid| format!("{pid}\n")).collect();
            fs::create_dir_all(root.path().join(folder)).unwrap();
            fs::write(root.path().join(folder).join("cgroup.procs"), text).unwrap();
        }
        root
    }

    fn own_pid() -> i32 {
        i32::try_from(std::process::id()).unwrap()
    }

    #[test]
    fn descriptors_and_sockets_are_counted() {
        let _sockets = UnixStream::pair().unwrap();
        let open = count(own_pid(), &mut Budget::default()).unwrap();
        assert!(open.sockets >= 2 && open.descriptors > open.sockets, "{open:?}");
        assert_eq!(count(ENDED, &mut Budget::default()), Some(Open::default()));
    }

    #[test]
    fn a_cgroup_includes_those_below() {
        let own = own_pid();
        let root =
            cgroups(&[("", &[]), ("pod", &[ENDED]), ("pod/one", &[own, ENDED]), ("pod/two", &[ENDED])]);
        let (census, mut budget) = (Census::default(), Budget::default());
        let container = census.of(&root.path().join("pod/one"), 0, &mut budget);
        assert_eq!(container.processes, 2);
        assert!(container.open.unwrap().descriptors > 0);
        let left = budget.0;
        let pod = census.of(&root.path().join("pod"), 0, &mut budget);
        assert_eq!((pod.processes, pod.open), (4, container.open));
        assert_eq!(budget.0, left, "the process was counted already");
        assert_eq!(census.of(&root.path().join("none"), 0, &mut budget).processes, 0);
    }

    /// Pods with the same parent, and pods below others, are read once for each request.
    #[test]
    fn each_cgroup_is_read_once() {
        let root = cgroups(&[("", &[ENDED]), ("pod", &[ENDED]), ("pod/container", &[ENDED])]);
        let census = Census::default();
        let of = |folder: &str| census.of(&root.path().join(folder), 0, &mut Budget::default()).processes;
        assert_eq!(of("pod/container"), 1);
        fs::write(root.path().join("pod/container/cgroup.procs"), format!("{ENDED}\n").repeat(3)).unwrap();
        assert_eq!((of("pod"), of("")), (2, 3), "the container's cgroup is not read again");
        fs::write(root.path().join("cgroup.procs"), "").unwrap();
        assert_eq!(of(""), 3, "the parent is not read again");
    }

    #[test]
    fn cgroups_below_the_maximum_depth_are_counted() {
        let deepest = vec!["deeper"; 3 * MAX_DEPTH].join("/");
        let root = cgroups(&[(&deepest, &[ENDED, ENDED])]);
        for above in Path::new(&deepest).ancestors().skip(1) {
            fs::write(root.path().join(above).join("cgroup.procs"), "").unwrap();
        }
        assert_eq!(Census::default().of(root.path(), 0, &mut Budget::default()).processes, 2);
    }

    #[test]
    fn too_many_descriptors_are_not_counted() {
        assert_eq!(count(own_pid(), &mut Budget(0)), None);
        let tally = Tally::of(&[ENDED, own_pid(), ENDED], &mut Budget(0));
        assert_eq!(tally, Tally { processes: 3, open: None });
    }

    #[test]
    fn the_soft_limit_is_read() {
        let limits = "Limit   Soft Limit   Hard Limit   Units\nMax open files     1024   524288   files\n";
        assert_eq!(max_open_files(limits), Some(1024));
        assert_eq!(max_open_files(""), None);
    }
}
