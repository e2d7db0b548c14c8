//! A pod and its containers as the daemon describes them, with the places that a page reads.

use berth_proto::admin::OperationInFlight;
use berth_proto::v1::{ContainerState, ContainerStatus, PodSandboxStatus};
use serde_json::Value;

use super::page::ExitSummary;
use crate::cli::format::{age, time};
use crate::cli::node::NodeClient;
use crate::cli::node::select::{Objects, container_name};

/// The pod of a page.
#[derive(Clone, Debug, Default)]
pub(super) struct PodFacts {
    pub(super) status: PodSandboxStatus,
    pub(super) cgroup: String,
    /// The cgroup that the client has created for the whole pod, if it did.
    pub(super) whole_cgroup: Option<String>,
    pub(super) host_ports: Vec<String>,
    pub(super) needs_keeper: bool,
}

/// A container of a page.
#[derive(Clone, Debug, Default)]
pub(super) struct ContainerFacts {
    pub(super) status: ContainerStatus,
    pub(super) cgroup: String,
    pub(super) pid: Option<i32>,
}

/// A cgroup whose processes are shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) name: String,
    pub(super) cgroup: String,
}

fn info_of(info: &std::collections::HashMap<String, String>) -> Value {
    info.get("info").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Asks the daemon for a pod.
pub(super) async fn pod(node: &mut NodeClient, id: &str) -> Result<PodFacts, String> {
    let answer = node.pod_status(id).await?;
    let info = info_of(&answer.info);
    let cgroup = text(&info, "/cgroup");
    let is_named = !text(&info, "/config/linux/cgroup_parent").is_empty();
    let parent = cgroup.rsplit_once('/').map(|(parent, _)| parent.to_owned());
    Ok(PodFacts {
        whole_cgroup: parent.filter(|parent| is_named && !parent.is_empty()),
        host_ports: host_ports(&info),
        needs_keeper: info.pointer("/state/Ready").is_some(),
        cgroup,
        status: answer.status.unwrap_or_default(),
    })
}

/// The ports of the host that the client has requested.
fn host_ports(info: &Value) -> Vec<String> {
    let mappings = info.pointer("/config/port_mappings").and_then(Value::as_array);
    let number = |mapping: &Value, key: &str| mapping.get(key).and_then(Value::as_i64).unwrap_or(0);
    let shown = mappings.into_iter().flatten().filter(|mapping| number(mapping, "host_port") > 0);
    let shown = shown.map(|mapping| {
        let protocol = match number(mapping, "protocol") {
            1 => "udp",
            2 => "sctp",
            _ => "tcp",
        };
        let host = match text(mapping, "/host_ip") {
            address if address.is_empty() => "*".to_owned(),
            address => address,
        };
        let (outer, inner) = (number(mapping, "host_port"), number(mapping, "container_port"));
        format!("{protocol} {host}:{outer} -> {inner}")
    });
    shown.collect()
}

/// Asks the daemon for a container.
pub(super) async fn container(node: &mut NodeClient, id: &str) -> Result<ContainerFacts, String> {
    let answer = node.container_status(id).await?;
    let info = info_of(&answer.info);
    let pid = info.get("pid").and_then(Value::as_i64).and_then(|pid| i32::try_from(pid).ok());
    Ok(ContainerFacts {
        status: answer.status.unwrap_or_default(),
        cgroup: text(&info, "/cgroup"),
        pid: pid.filter(|pid| *pid > 0),
    })
}

/// Asks the daemon for the containers of a pod, oldest first. A container that is removed meanwhile is left out.
pub(super) async fn containers(
    node: &mut NodeClient,
    objects: &Objects<'_>,
    pod: &str,
) -> Vec<ContainerFacts> {
    let mut of_pod: Vec<_> = objects.containers.iter().filter(|c| c.pod_sandbox_id == pod).collect();
    of_pod.sort_by_key(|container| container.created_at);
    let mut facts = Vec::new();
    for listed in of_pod {
        facts.extend(container(node, &listed.id).await.ok());
    }
    facts
}

impl ContainerFacts {
    pub(super) fn name(&self) -> String {
        self.status.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default()
    }

    pub(super) fn attempt(&self) -> u32 {
        self.status.metadata.as_ref().map_or(0, |metadata| metadata.attempt)
    }

    pub(super) fn has_ended(&self) -> bool {
        self.status.state() == ContainerState::ContainerExited
    }

    pub(super) fn subject(&self) -> Option<Subject> {
        let runs = !self.has_ended() && !self.cgroup.is_empty();
        runs.then(|| Subject { name: self.name(), cgroup: self.cgroup.clone() })
    }

    pub(super) fn exit(&self) -> Option<ExitSummary> {
        let status = &self.status;
        self.has_ended().then(|| ExitSummary {
            container: self.name(),
            attempt: self.attempt(),
            code: status.exit_code,
            reason: status.reason.clone(),
            message: berth_image::printable(&status.message, 1000),
            at: time(status.finished_at),
            ran: age(status.started_at, status.finished_at),
        })
    }
}

impl PodFacts {
    pub(super) fn subject(&self) -> Option<Subject> {
        let is_known = !self.cgroup.is_empty();
        is_known.then(|| Subject { name: "pause".to_owned(), cgroup: self.cgroup.clone() })
    }

    /// The cgroups of containers that are being created: the name of a cgroup differs only in the id.
    pub(super) fn being_created(&self, operations: &[OperationInFlight]) -> Vec<Subject> {
        let id = &self.status.id;
        let creates = operations.iter().filter(|operation| {
            operation.rpc == "CreateContainer"
                && operation.pod_id == *id
                && !operation.container_id.is_empty()
        });
        let subject = |operation: &OperationInFlight| Subject {
            name: operation.name.clone(),
            cgroup: self.cgroup.replace(id.as_str(), &operation.container_id),
        };
        creates.filter(|_| self.cgroup.contains(id.as_str())).map(subject).collect()
    }
}

/// Returns the exits of the attempts of a container, newest first.
pub(super) async fn exits(
    node: &mut NodeClient,
    objects: &Objects<'_>,
    of: &ContainerFacts,
) -> Vec<ExitSummary> {
    let listed = objects.containers.iter().find(|container| container.id == of.status.id);
    let mut exits = Vec::new();
    for attempt in listed.map(|listed| objects.attempts(listed)).unwrap_or_default() {
        debug_assert_eq!(container_name(attempt), of.name());
        exits.extend(container(node, &attempt.id).await.ok().and_then(|facts| facts.exit()));
    }
    exits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_ports_are_those_of_the_config() {
        let info = serde_json::json!({ "config": { "port_mappings": [
            { "protocol": 0, "container_port": 80, "host_port": 8080, "host_ip": "" },
            { "protocol": 1, "container_port": 53, "host_port": 53, "host_ip": "127.0.0.1" },
            { "protocol": 0, "container_port": 81, "host_port": 0, "host_ip": "" },
        ] } });
        assert_eq!(host_ports(&info), ["tcp *:8080 -> 80", "udp 127.0.0.1:53 -> 53"]);
        assert!(host_ports(&Value::Null).is_empty());
    }

    #[test]
    fn a_container_that_is_being_created_has_the_cgroup_of_its_id() {
        let pod = PodFacts {
            status: PodSandboxStatus { id: "aa".to_owned(), ..PodSandboxStatus::default() },
            cgroup: "/kubepods/cri-aa.scope".to_owned(),
            ..PodFacts::default()
        };
        let operation = |rpc: &str, container: &str| OperationInFlight {
            rpc: rpc.to_owned(),
            pod_id: "aa".to_owned(),
            container_id: container.to_owned(),
            name: "main".to_owned(),
            ..OperationInFlight::default()
        };
        let operations = [operation("CreateContainer", "cc"), operation("CreateContainer", "")];
        let expected = Subject { name: "main".to_owned(), cgroup: "/kubepods/cri-cc.scope".to_owned() };
        assert_eq!(pod.being_created(&operations), [expected]);
        assert!(pod.being_created(&[operation("StopContainer", "cc")]).is_empty());
    }
}
