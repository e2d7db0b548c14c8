//! The metrics of processes: their number, file descriptors, sockets and limits (proc_pid_fd(5), proc_pid_limits(5)).

use std::collections::HashMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use berth_runtime::cgroup::Cgroup;

use super::collector::Collector;
use super::descriptors::{FILE_DESCRIPTORS, PROCESSES, SOCKETS, ULIMITS};

/// The most file descriptors that are counted in one pod. Counting takes about a second per million.
const MAX_COUNTED: u64 = 1_000_000;

/// Open file descriptors, and how many of them are sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Open {
    descriptors: u64,
    sockets: u64,
}

/// The open file descriptors of the processes of one pod. Each process is counted once, although it belongs to both
/// its container and the pod.
#[derive(Debug, Default)]
pub(super) struct Descriptors {
    by_process: HashMap<i32, Open>,
    counted: u64,
}

impl Descriptors {
    /// Returns the descriptors of several processes, or `None` if there are too many to count.
    fn of(&mut self, pids: &[i32]) -> Option<Open> {
        let mut sum = Open::default();
        for &pid in pids {
            let open = match self.by_process.get(&pid) {
                Some(open) => *open,
                None => self.count(pid)?,
            };
            sum.descriptors += open.descriptors;
            sum.sockets += open.sockets;
        }
        Some(sum)
    }

    /// Counts the descriptors of one process. A process that has ended has none.
    fn count(&mut self, pid: i32) -> Option<Open> {
        let mut open = Open::default();
        for descriptor in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            if self.counted >= MAX_COUNTED {
                return None;
            }
            self.counted += 1;
            open.descriptors += 1;
            let target = fs::read_link(descriptor.path());
            if target.is_ok_and(|target| target.as_os_str().as_bytes().starts_with(b"socket:")) {
                open.sockets += 1;
            }
        }
        self.by_process.insert(pid, open);
        Some(open)
    }
}

/// Adds the metrics of the processes in a cgroup and below. A cgroup without processes is being removed and has none.
pub(super) fn add(collector: &mut Collector, cgroup: &Cgroup, descriptors: &mut Descriptors) {
    let pids = cgroup.processes().unwrap_or_default();
    if pids.is_empty() {
        return;
    }
    collector.add(&PROCESSES, u64::try_from(pids.len()).ok());
    if let Some(open) = descriptors.of(&pids) {
        collector.add(&FILE_DESCRIPTORS, open.descriptors);
        collector.add(&SOCKETS, open.sockets);
    }
}

/// Adds the soft limits of a container's first process.
pub(super) fn add_limits(collector: &mut Collector, pid: i32) {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
    collector.add_with(&ULIMITS, ["max_open_files"], max_open_files(&limits));
}

/// Parses the soft limit in a line such as `Max open files  1024  524288  files`.
fn max_open_files(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn descriptors_and_sockets_are_counted_once_per_process() {
        let own = i32::try_from(std::process::id()).unwrap();
        let _sockets = UnixStream::pair().unwrap();
        let mut descriptors = Descriptors::default();
        let open = descriptors.of(&[own]).unwrap();
        assert!(open.sockets >= 2 && open.descriptors > open.sockets, "{open:?}");
        let counted = descriptors.counted;
        // A pid is never negative.
        assert_eq!(descriptors.of(&[own, -1]), Some(open));
        assert_eq!(descriptors.counted, counted);
    }

    #[test]
    fn too_many_descriptors_are_not_counted() {
        let own = i32::try_from(std::process::id()).unwrap();
        let mut descriptors = Descriptors { counted: MAX_COUNTED, ..Descriptors::default() };
        assert_eq!(descriptors.of(&[own]), None);
    }

    #[test]
    fn the_soft_limit_is_read() {
        let limits = "Limit   Soft Limit   Hard Limit   Units\nMax open files     1024   524288   files\n";
        assert_eq!(max_open_files(limits), Some(1024));
        assert_eq!(max_open_files(""), None);
    }
}
