//! Likely causes of a hang of a pod or a container, as sentences: a network plugin, a pull, a mount, a process in the kernel, a
//! frozen cgroup, a keeper that does not run.

use std::time::Duration;

use super::page::{OperationSummary, PluginSummary, ProcessSummary};
use crate::cli::format::duration;

/// A step that takes longer than this is probably blocked.
const LONG: Duration = Duration::from_secs(1);

/// The facts that the sentences are made from.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Facts<'a> {
    pub(super) operations: &'a [OperationSummary],
    pub(super) plugins: &'a [PluginSummary],
    pub(super) pulls: &'a [String],
    pub(super) processes: &'a [ProcessSummary],
    /// Names of the frozen cgroups.
    pub(super) frozen: &'a [String],
    /// Mounts that do not answer, with the name of their container.
    pub(super) mounts: &'a [(String, String)],
    /// Whether the pod needs a keeper and has none.
    pub(super) keeper_ended: bool,
}

pub(super) fn causes(facts: &Facts<'_>) -> Vec<String> {
    let mut causes = Vec::new();
    let after = |milliseconds: u64| duration(Duration::from_millis(milliseconds));
    let long = |operation: &&OperationSummary| Duration::from_millis(operation.step_milliseconds) >= LONG;
    causes.extend(facts.operations.iter().filter(long).map(|operation| {
        format!("{} is at step {} for {}", operation.rpc, operation.step, after(operation.step_milliseconds))
    }));
    causes.extend(facts.plugins.iter().map(|plugin| {
        let waits = facts.processes.iter().find(|process| process.pid == plugin.pid).map(doing);
        let stderr = if plugin.stderr.is_empty() { "nothing" } else { plugin.stderr.as_str() };
        format!(
            "network plugin {} runs {} for {} (pid {}{}); it wrote to standard error: {stderr}",
            plugin.plugin,
            plugin.command,
            after(plugin.milliseconds),
            plugin.pid,
            waits.map(|waits| format!(", {waits}")).unwrap_or_default(),
        )
    }));
    causes.extend(facts.pulls.iter().cloned());
    causes.extend(facts.frozen.iter().map(|name| format!("the cgroup of {name} is frozen")));
    causes
        .extend(facts.mounts.iter().map(|(of, mount)| format!("the mount {mount} of {of} does not answer")));
    let stuck = facts.processes.iter().filter(|process| matches!(process.state.as_str(), "D" | "T" | "t"));
    causes.extend(stuck.map(|process| {
        format!("process {} ({}) of {}: {}", process.pid, process.command, process.of, doing(process))
    }));
    if facts.keeper_ended {
        causes.push("the keeper of the pod has ended".to_owned());
    }
    causes
}

/// Describes the activity of a process.
fn doing(process: &ProcessSummary) -> String {
    let state = match process.state.as_str() {
        "R" => "runs",
        "S" => "sleeps",
        "D" => "waits in the kernel and cannot be interrupted",
        "T" => "is stopped by a signal",
        "t" => "is stopped by a tracer",
        "Z" => "has ended",
        "I" => "is idle",
        _ => "is in an unknown state",
    };
    match process.waits_in.as_str() {
        "" => state.to_owned(),
        function => format!("{state} in {function}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, state: &str, waits_in: &str) -> ProcessSummary {
        ProcessSummary {
            pid,
            of: "main".to_owned(),
            command: "cat".to_owned(),
            state: state.to_owned(),
            waits_in: waits_in.to_owned(),
            ..ProcessSummary::default()
        }
    }

    #[test]
    fn each_cause_is_a_sentence() {
        let operation = |step: &str, step_milliseconds| OperationSummary {
            rpc: "RunPodSandbox".to_owned(),
            step: step.to_owned(),
            since: String::new(),
            step_since: String::new(),
            step_milliseconds,
        };
        let plugin = PluginSummary {
            plugin: "calico".to_owned(),
            command: "ADD".to_owned(),
            pid: 7,
            since: String::new(),
            milliseconds: 12_000,
            stderr: "waiting for the datastore".to_owned(),
        };
        let processes =
            [process(7, "S", "hrtimer_nanosleep"), process(8, "D", "nfs_wait"), process(9, "R", "")];
        let facts = Facts {
            operations: &[operation("network", 12_000), operation("record", 3)],
            plugins: &[plugin],
            processes: &processes,
            frozen: &["main".to_owned()],
            mounts: &[("main".to_owned(), "/data (nfs4 of server:/export)".to_owned())],
            keeper_ended: true,
            ..Facts::default()
        };
        assert_eq!(
            causes(&facts),
            [
                "RunPodSandbox is at step network for 12s",
                "network plugin calico runs ADD for 12s (pid 7, sleeps in hrtimer_nanosleep); it wrote to standard \
                 error: waiting for the datastore",
                "the cgroup of main is frozen",
                "the mount /data (nfs4 of server:/export) of main does not answer",
                "process 8 (cat) of main: waits in the kernel and cannot be interrupted in nfs_wait",
                "the keeper of the pod has ended",
            ]
        );
        assert!(causes(&Facts::default()).is_empty());
    }
}
