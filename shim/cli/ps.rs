//! `berth ps`: lists pods and containers.

use std::process::ExitCode;

use berth_proto::v1::{Container, ContainerState, PodSandbox, PodSandboxState};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::format::{age, short, table, time};
use super::node::select::{container_name, pod_name};
use super::node::{Endpoint, NodeClient, OutputFormat, json, run as run_command};

/// Arguments of `berth ps`.
#[derive(Clone, Debug, Args)]
pub struct PsArgs {
    /// Show also stopped pods and exited containers
    #[arg(short, long)]
    all: bool,
    /// Show only pods of this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Show only this pod, by name or by the start of its id
    #[arg(short, long, value_name = "POD")]
    pod: Option<String>,
    /// Show only pods or containers in this state (implies --all)
    #[arg(short, long, value_name = "STATE")]
    state: Option<ObjectState>,
    /// Set the format of the output
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: OutputFormat,
    #[command(flatten)]
    endpoint: Endpoint,
}

/// The state of a pod or a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum ObjectState {
    /// A pod that runs
    Ready,
    /// A pod that is stopped
    NotReady,
    /// A container that has not been started
    Created,
    /// A container that runs
    Running,
    /// A container that has ended
    Exited,
    /// Not known
    #[value(skip)]
    Unknown,
}

impl ObjectState {
    pub(super) fn of_pod(state: PodSandboxState) -> Self {
        match state {
            PodSandboxState::SandboxReady => Self::Ready,
            PodSandboxState::SandboxNotready => Self::NotReady,
        }
    }

    pub(super) fn of_container(state: ContainerState) -> Self {
        match state {
            ContainerState::ContainerCreated => Self::Created,
            ContainerState::ContainerRunning => Self::Running,
            ContainerState::ContainerExited => Self::Exited,
            ContainerState::ContainerUnknown => Self::Unknown,
        }
    }

    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::NotReady => "notready",
            Self::Created => "created",
            Self::Running => "running",
            Self::Exited => "exited",
            Self::Unknown => "unknown",
        }
    }

    fn is_over(self) -> bool {
        matches!(self, Self::NotReady | Self::Exited)
    }
}

/// A line: a pod, or a container of the pod above it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct ListedObject {
    namespace: String,
    pod: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<String>,
    state: ObjectState,
    attempt: u32,
    created_at: String,
    #[serde(skip)]
    age: String,
    id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    image: String,
}

pub(super) fn run(args: PsArgs) -> ExitCode {
    run_command(list(args))
}

async fn list(args: PsArgs) -> Result<String, String> {
    let mut node = NodeClient::connect(args.endpoint.clone()).await?;
    let (pods, containers) = (node.pods().await?, node.containers().await?);
    let rows = rows(&args, pods, &containers, crate::clock::now());
    match args.output {
        OutputFormat::Json => json(&rows),
        OutputFormat::Text => Ok(text(&rows)),
    }
}

/// Returns the selected pods, each followed by its selected containers. A pod whose containers are selected is shown, too.
fn rows(args: &PsArgs, mut pods: Vec<PodSandbox>, containers: &[Container], now: i64) -> Vec<ListedObject> {
    let is_selected = |state: ObjectState| match args.state {
        Some(only) => state == only,
        None => args.all || !state.is_over(),
    };
    pods.sort_by(|a, b| pod_name(a).cmp(&pod_name(b)).then(b.created_at.cmp(&a.created_at)));
    let mut rows = Vec::new();
    for pod in pods {
        let (namespace, name) = pod_name(&pod);
        let is_named =
            args.pod.as_ref().is_none_or(|wanted| name == wanted.as_str() || pod.id.starts_with(wanted));
        if !is_named || args.namespace.as_ref().is_some_and(|wanted| namespace != wanted.as_str()) {
            continue;
        }
        let state = ObjectState::of_pod(pod.state());
        let row = ListedObject {
            namespace: namespace.to_owned(),
            pod: name.to_owned(),
            container: None,
            state,
            attempt: pod.metadata.as_ref().map_or(0, |metadata| metadata.attempt),
            created_at: time(pod.created_at),
            age: age(pod.created_at, now),
            id: pod.id.clone(),
            image: String::new(),
        };
        let mut of_pod: Vec<&Container> = containers.iter().filter(|c| c.pod_sandbox_id == pod.id).collect();
        of_pod.sort_by_key(|container| container.created_at);
        let selected = of_pod.into_iter().map(|container| ListedObject {
            container: Some(container_name(container).to_owned()),
            state: ObjectState::of_container(container.state()),
            attempt: container.metadata.as_ref().map_or(0, |metadata| metadata.attempt),
            created_at: time(container.created_at),
            age: age(container.created_at, now),
            id: container.id.clone(),
            image: container.image.as_ref().map(|image| image.image.clone()).unwrap_or_default(),
            ..row.clone()
        });
        let selected: Vec<ListedObject> = selected.filter(|row| is_selected(row.state)).collect();
        if is_selected(state) || !selected.is_empty() {
            rows.push(row);
            rows.extend(selected);
        }
    }
    rows
}

fn text(rows: &[ListedObject]) -> String {
    let titles = ["NAMESPACE", "POD", "CONTAINER", "STATE", "AGE", "ATTEMPT", "ID", "IMAGE"];
    let mut lines = vec![titles.map(str::to_owned)];
    lines.extend(rows.iter().map(|row| {
        let container = row.container.clone().unwrap_or_else(|| "-".to_owned());
        let image = if row.image.starts_with("sha256:") { short(&row.image) } else { row.image.clone() };
        [
            row.namespace.clone(),
            row.pod.clone(),
            container,
            row.state.text().to_owned(),
            row.age.clone(),
            row.attempt.to_string(),
            short(&row.id),
            image,
        ]
    }));
    table(&lines)
}

#[cfg(test)]
mod tests {
    use berth_proto::v1::{ContainerMetadata, PodSandboxMetadata};
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: PsArgs,
    }

    fn shown(flags: &[&str]) -> Vec<String> {
        let pod = |id: &str, name: &str, state: PodSandboxState| PodSandbox {
            id: id.repeat(32),
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                namespace: "default".to_owned(),
                ..PodSandboxMetadata::default()
            }),
            state: state.into(),
            created_at: 1,
            ..PodSandbox::default()
        };
        let container = |pod: &str, name: &str, state: ContainerState| Container {
            id: name.repeat(8),
            pod_sandbox_id: pod.repeat(32),
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 2 }),
            state: state.into(),
            created_at: 1,
            ..Container::default()
        };
        let pods = vec![
            pod("aa", "web", PodSandboxState::SandboxReady),
            pod("bb", "old", PodSandboxState::SandboxNotready),
        ];
        let containers = [
            container("aa", "main", ContainerState::ContainerRunning),
            container("aa", "init", ContainerState::ContainerExited),
            container("bb", "last", ContainerState::ContainerExited),
        ];
        let args = Command::parse_from(["ps"].iter().chain(flags)).args;
        let rows = rows(&args, pods, &containers, 60_000_000_001);
        rows.into_iter().map(|row| format!("{}/{}", row.pod, row.container.unwrap_or_default())).collect()
    }

    #[test]
    fn pods_and_containers_are_selected_by_their_state_and_name() {
        assert_eq!(shown(&[]), ["web/", "web/main"]);
        assert_eq!(shown(&["-a"]), ["old/", "old/last", "web/", "web/main", "web/init"]);
        assert_eq!(shown(&["--state", "exited"]), ["old/", "old/last", "web/", "web/init"]);
        assert_eq!(shown(&["--state", "not-ready"]), ["old/"]);
        assert_eq!(shown(&["-a", "--pod", "web"]), ["web/", "web/main", "web/init"]);
        assert_eq!(shown(&["-a", "--pod", "bbb"]), ["old/", "old/last"], "by the start of its id");
        assert!(shown(&["-a", "-n", "other"]).is_empty());
    }
}
