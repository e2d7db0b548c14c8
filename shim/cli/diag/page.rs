//! The page of `berth diag`: plain data, as its JSON shows it.

use serde::Serialize;

use super::section::Section;

/// All about one pod or container.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::cli) struct Page {
    /// `pod`, `container` or `pod being created`.
    pub(in crate::cli) kind: &'static str,
    pub(in crate::cli) id: String,
    /// `NAMESPACE/POD` or `NAMESPACE/POD/CONTAINER`.
    pub(in crate::cli) name: String,
    pub(in crate::cli) attempt: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::cli) image: String,
    pub(in crate::cli) state: String,
    /// The start of the state; empty if it is not known.
    pub(in crate::cli) since: String,
    /// Why the state is what it is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::cli) reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::cli) pod_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::cli) cgroup: String,
    /// Likely causes of a hang.
    pub(in crate::cli) blocked: Vec<String>,
    pub(in crate::cli) operations: Vec<OperationSummary>,
    pub(in crate::cli) plugins: Vec<PluginSummary>,
    /// The containers of a pod.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::cli) containers: Vec<Member>,
    pub(in crate::cli) processes: Section<Vec<ProcessSummary>>,
    pub(in crate::cli) limits: Section<Vec<Figure>>,
    pub(in crate::cli) network: Section<NetworkSummary>,
    pub(in crate::cli) mounts: Section<Vec<String>>,
    pub(in crate::cli) logs: Vec<Log>,
    pub(in crate::cli) exits: Vec<ExitSummary>,
    pub(in crate::cli) keeper: Section<KeeperSummary>,
}

/// An operation in flight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::cli) struct OperationSummary {
    pub(in crate::cli) rpc: String,
    pub(in crate::cli) step: String,
    pub(in crate::cli) since: String,
    pub(in crate::cli) step_since: String,
    pub(in crate::cli) step_milliseconds: u64,
}

/// A network plugin that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::cli) struct PluginSummary {
    pub(in crate::cli) plugin: String,
    pub(in crate::cli) command: String,
    pub(in crate::cli) pid: i32,
    pub(in crate::cli) since: String,
    pub(in crate::cli) milliseconds: u64,
    pub(in crate::cli) stderr: String,
}

/// A container of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(in crate::cli) struct Member {
    pub(in crate::cli) id: String,
    pub(in crate::cli) name: String,
    pub(in crate::cli) attempt: u32,
    pub(in crate::cli) state: &'static str,
}

/// A process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::cli) struct ProcessSummary {
    pub(in crate::cli) pid: i32,
    /// `keeper`, `pause`, `plugin NAME` or the name of the container.
    pub(in crate::cli) of: String,
    /// The name of its exec; empty if an exec has not started it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::cli) exec: String,
    pub(in crate::cli) command: String,
    /// A letter of proc_pid_stat(5).
    pub(in crate::cli) state: String,
    /// The function of the kernel in which it waits; empty if it runs.
    pub(in crate::cli) waits_in: String,
    pub(in crate::cli) threads: u64,
    pub(in crate::cli) resident_bytes: u64,
    /// The stack in the kernel of a process that cannot be interrupted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::cli) kernel_stack: Vec<String>,
}

/// A limit or a usage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(in crate::cli) struct Figure {
    pub(in crate::cli) what: &'static str,
    pub(in crate::cli) used: String,
    pub(in crate::cli) limit: String,
}

/// The addresses of a pod, and how packets reach it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::cli) struct NetworkSummary {
    /// The name of the network; `host` for a pod in the host's network.
    pub(in crate::cli) network: String,
    pub(in crate::cli) addresses: Vec<String>,
    pub(in crate::cli) host_ports: Vec<String>,
    pub(in crate::cli) links: Section<Vec<String>>,
    pub(in crate::cli) rules: Section<Vec<String>>,
}

impl<T: Default> Default for Section<T> {
    fn default() -> Self {
        Self::Known(T::default())
    }
}

/// The last lines of a container's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(in crate::cli) struct Log {
    pub(in crate::cli) container: String,
    pub(in crate::cli) path: String,
    pub(in crate::cli) lines: Section<Vec<String>>,
}

/// The exit of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(in crate::cli) struct ExitSummary {
    pub(in crate::cli) container: String,
    pub(in crate::cli) attempt: u32,
    pub(in crate::cli) code: i32,
    pub(in crate::cli) reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(in crate::cli) message: String,
    pub(in crate::cli) at: String,
    /// How long it ran.
    pub(in crate::cli) ran: String,
}

/// The keeper of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(in crate::cli) struct KeeperSummary {
    /// 0 if it has ended.
    pub(in crate::cli) pid: i32,
    pub(in crate::cli) log: String,
    pub(in crate::cli) lines: Section<Vec<String>>,
}
