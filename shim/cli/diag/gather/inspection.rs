//! The processes of a pod's cgroups, keeper and plugins, and what blocks them.

use std::time::Duration;

use super::{Common, PageOptions, logs};
use crate::cli::diag::blocked::{self, Facts};
use crate::cli::diag::cgroup::{self, CgroupUsage};
use crate::cli::diag::members::{PodFacts, Subject};
use crate::cli::diag::page::{Page, ProcessSummary};
use crate::cli::diag::section::{Gathering, PATIENCE, Section, gather};
use crate::cli::diag::{mounts, processes};

/// The most processes of a cgroup that are shown.
const MAX_PROCESSES: usize = 50;

/// The time limit for the arguments of a process, which wait for its memory lock.
const ARGUMENTS: Duration = Duration::from_millis(500);

/// The processes of a page, and what blocks.
pub(super) struct Inspection {
    pub(super) processes: Section<Vec<ProcessSummary>>,
    pub(super) blocked: Vec<String>,
}

impl Inspection {
    pub(super) fn collect(
        common: &Common,
        pod: &PodFacts,
        subjects: Vec<Subject>,
        pulls: &[String],
        options: PageOptions,
    ) -> Self {
        let keeper = common.description.as_ref().map(|seen| seen.keeper_pid).unwrap_or_default();
        let keeper_ended = common.description.is_ok() && keeper == 0 && pod.needs_keeper;
        let single = common.plugins.iter().map(|call| (call.pid, format!("plugin {}", call.plugin)));
        let single = single.chain((keeper > 0).then(|| (keeper, "keeper".to_owned())));
        let gathering: Vec<(String, Gathering<Members>)> = subjects
            .into_iter()
            .map(|Subject { name, cgroup }| {
                (name.clone(), gather(PATIENCE, move || of_cgroup(&name, &cgroup)))
            })
            .collect();
        let mut processes: Vec<ProcessSummary> =
            single.filter_map(|(pid, name)| processes::read(pid, &name)).collect();
        let (mut frozen, mut hung, mut missing) = (Vec::new(), Vec::new(), Vec::new());
        for (name, section) in gathering {
            match section.wait() {
                Section::Known(members) => {
                    processes.extend(members.processes);
                    hung.extend(members.unresponsive_mounts.into_iter().map(|mount| (name.clone(), mount)));
                    frozen.extend(members.usage.is_frozen.then_some(name));
                }
                Section::Unknown { reason } => missing.push(format!("{name}: {reason}")),
            }
        }
        if options.arguments {
            add_arguments(&mut processes);
        }
        let mut blocked = blocked::causes(&Facts {
            operations: &common.operations,
            plugins: &common.plugins,
            pulls,
            processes: &processes,
            frozen: &frozen,
            mounts: &hung,
            keeper_ended,
        });
        let processes = match (processes.is_empty(), missing.is_empty()) {
            (true, false) => Err(missing.join("; ")),
            _ => Ok(processes),
        };
        blocked.extend(missing.into_iter().map(|what| format!("the processes are not available: {what}")));
        Self { processes: processes.into(), blocked }
    }

    /// The page with these parts and those of all pages, without the parts that only some objects have.
    pub(super) fn page(self, common: Common, options: PageOptions) -> Page {
        Page {
            keeper: logs::keeper(&common.description, options),
            blocked: self.blocked,
            processes: self.processes,
            network: common.network,
            operations: common.operations,
            plugins: common.plugins,
            ..Page::default()
        }
    }
}

/// A cgroup with its processes, and the mounts that these see and that do not answer.
struct Members {
    usage: CgroupUsage,
    processes: Vec<ProcessSummary>,
    unresponsive_mounts: Vec<String>,
}

fn of_cgroup(name: &str, path: &str) -> Result<Members, String> {
    let seen = cgroup::read(path)?;
    let shown = seen.pids.iter().take(MAX_PROCESSES);
    let mut found: Vec<ProcessSummary> = shown.filter_map(|pid| processes::read(*pid, name)).collect();
    let of_execs = seen.execs.iter().flat_map(|(exec, pids)| pids.iter().map(move |pid| (exec, *pid)));
    found.extend(of_execs.take(MAX_PROCESSES).filter_map(|(exec, pid)| {
        let process = processes::read(pid, name)?;
        Some(ProcessSummary { exec: exec.clone(), ..process })
    }));
    let unresponsive_mounts = seen.pids.first().copied().map(mounts::unresponsive).unwrap_or_default();
    Ok(Members { usage: seen, processes: found, unresponsive_mounts })
}

/// Adds the arguments of processes that answer in time.
fn add_arguments(processes: &mut [ProcessSummary]) {
    let reading: Vec<_> = processes
        .iter()
        .map(|process| {
            let pid = process.pid;
            gather(ARGUMENTS, move || processes::command(pid))
        })
        .collect();
    for (process, command) in processes.iter_mut().zip(reading) {
        // A thread of the kernel and a process that has ended have no arguments.
        if let Section::Known(command) = command.wait()
            && !command.trim().is_empty()
        {
            process.command = command;
        }
    }
}
