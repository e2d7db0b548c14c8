//! The processes that exist because of a pod, except those of its containers, and their memory.

use std::collections::{HashMap, HashSet};
use std::fs;

use crate::bench::WORKLOAD;

/// A process with its data from proc(5).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    parent: u32,
    /// The short name.
    pub(crate) name: String,
    command: Vec<String>,
    cgroups: String,
    /// The proportional set size: memory shared by n processes counts 1/n in each.
    pub(crate) pss_kb: u64,
}

impl Process {
    /// Returns whether the process runs the workload of the bench's containers. All other processes are costs of the
    /// runtime.
    fn is_workload(&self) -> bool {
        let name = self.command.first().map(|word| word.rsplit('/').next().unwrap_or(word));
        name == WORKLOAD.first().copied() && self.command.iter().skip(1).eq(WORKLOAD.iter().skip(1))
    }

    fn mentions(&self, id: &str) -> bool {
        self.cgroups.contains(id) || self.command.iter().any(|word| word.contains(id))
    }
}

/// Returns all processes of this host. Processes that exit meanwhile are left out.
pub(crate) fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| read(entry.file_name().to_str()?.parse().ok()?)).collect()
}

/// Reads one process.
pub(crate) fn read(pid: u32) -> Option<Process> {
    let file = |name: &str| {
        fs::read(format!("/proc/{pid}/{name}")).ok().map(|b| String::from_utf8_lossy(&b).into_owned())
    };
    let status = file("status")?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let command = file("cmdline")?;
    // Kernel threads and zombies have no memory and no rollup.
    let memory = file("smaps_rollup").unwrap_or_default();
    Some(Process {
        pid,
        parent: field("PPid:")?.parse().ok()?,
        name: field("Name:")?.to_owned(),
        command: command.split_terminator('\0').map(str::to_owned).collect(),
        cgroups: file("cgroup")?,
        pss_kb: pss(&memory).unwrap_or_default(),
    })
}

fn pss(rollup: &str) -> Option<u64> {
    rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// Returns the processes that exist because of the pods and containers with these ids, except workloads: they, or an
/// ancestor, have an id in their command line or their cgroup.
pub(crate) fn beside(processes: &[Process], ids: &[String], daemon: Option<u32>) -> Vec<Process> {
    let by_pid: HashMap<u32, &Process> = processes.iter().map(|process| (process.pid, process)).collect();
    let direct: HashSet<u32> = processes
        .iter()
        .filter(|process| ids.iter().any(|id| process.mentions(id)))
        .map(|process| process.pid)
        .collect();
    let belongs = |process: &Process| {
        let mut next = Some(process);
        // A chain of parents cannot be longer than the list, even if processes changed while it was read.
        for _ in 0..processes.len() {
            let Some(current) = next else { return false };
            // Other children of the daemon do not belong to a pod, even if the daemon's command line contains an id.
            if Some(current.pid) == daemon {
                return false;
            }
            if direct.contains(&current.pid) {
                return true;
            }
            next = by_pid.get(&current.parent).copied();
        }
        false
    };
    processes
        .iter()
        .filter(|process| process.pid != std::process::id())
        .filter(|process| !process.is_workload() && belongs(process))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, parent: u32, command: &str, cgroups: &str) -> Process {
        let command = command.split(' ').map(str::to_owned).collect();
        Process { pid, parent, command, cgroups: cgroups.to_owned(), ..Process::default() }
    }

    #[test]
    fn the_monitor_and_the_pause_are_counted_as_costs_of_a_pod() {
        let processes = [
            process(1, 0, "init", "0::/"),
            process(5, 1, "daemon --with abc", "0::/daemon"),
            process(10, 1, "shim -id abc", "0::/"),
            process(11, 10, "/pause", "0::/x/other"),
            process(12, 10, "/bin/sleep 86399", "0::/x/def"),
            process(13, 5, "pause", "0::/x/abc"),
            process(14, 1, "sleep 86399", "0::/"),
            process(15, 1, "unrelated", "0::/"),
            process(16, 5, "collector", "0::/daemon"),
        ];
        let ids = ["abc".to_owned(), "def".to_owned()];
        let found: Vec<u32> = beside(&processes, &ids, Some(5)).iter().map(|process| process.pid).collect();
        assert_eq!(found, [10, 11, 13]);
    }

    #[test]
    fn this_process_can_be_read() {
        let own = read(std::process::id()).unwrap();
        assert!(own.pss_kb > 100 && !own.command.is_empty() && own.parent > 0, "{own:?}");
        assert!(all().iter().any(|process| process.pid == own.pid));
        assert_eq!(read(0), None);
    }

    #[test]
    fn the_pss_is_read_from_the_rollup() {
        assert_eq!(pss("00400000-7fff rollup\nRss:  900 kB\nPss:     123 kB\nPss_Dirty: 7 kB\n"), Some(123));
        assert_eq!(pss(""), None);
    }
}
