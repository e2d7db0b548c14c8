//! The events of the node that `berth events` shows: the life cycle of pods and containers, OOM kills, and failures.

use berth_proto::admin::{NodeEvent, NodeEventKind as Kind};
use berth_proto::v1::ContainerEventType;

use crate::store::{Container, ContainerState, Pod};

/// Returns the event of a pod.
pub(super) fn of_pod(pod: &Pod, kind: ContainerEventType) -> NodeEvent {
    let kind = match kind {
        ContainerEventType::ContainerCreatedEvent => Kind::PodCreated,
        ContainerEventType::ContainerStartedEvent => Kind::PodStarted,
        ContainerEventType::ContainerStoppedEvent => Kind::PodStopped,
        ContainerEventType::ContainerDeletedEvent => Kind::PodDeleted,
    };
    NodeEvent { kind: kind.into(), ..named(Some(pod)) }
}

/// Returns the event of a failure of a pod's network.
pub(super) fn of_network(pod: &Pod, error: &str) -> NodeEvent {
    NodeEvent { kind: Kind::NetworkFailed.into(), message: error.to_owned(), ..named(Some(pod)) }
}

/// Returns the event of a container.
pub(super) fn of_container(pod: Option<&Pod>, container: &Container, kind: ContainerEventType) -> NodeEvent {
    let of = |kind: Kind| NodeEvent { kind: kind.into(), ..named_container(pod, container) };
    match kind {
        ContainerEventType::ContainerCreatedEvent => of(Kind::ContainerCreated),
        ContainerEventType::ContainerStartedEvent => of(Kind::ContainerStarted),
        ContainerEventType::ContainerDeletedEvent => of(Kind::ContainerDeleted),
        ContainerEventType::ContainerStoppedEvent => match container.state() {
            ContainerState::Exited(exit) => NodeEvent {
                reason: exit.reason.as_str().to_owned(),
                message: exit.message,
                exit_code: exit.code,
                ..of(Kind::ContainerExited)
            },
            _ => of(Kind::ContainerExited),
        },
    }
}

/// Returns the event of OOM kills in a container.
pub(super) fn of_oom_kills(pod: Option<&Pod>, container: &Container, kills: u64) -> NodeEvent {
    let processes = if kills == 1 { "process was" } else { "processes were" };
    NodeEvent {
        kind: Kind::OomKilled.into(),
        message: format!("{kills} {processes} killed for lack of memory"),
        ..named_container(pod, container)
    }
}

/// An event with the names of a container and its pod.
fn named_container(pod: Option<&Pod>, container: &Container) -> NodeEvent {
    container.with(|record| NodeEvent {
        container_id: record.id.as_str().to_owned(),
        container: record.config.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default(),
        pod_id: record.pod.as_str().to_owned(),
        ..named(pod)
    })
}

/// An event with the names of a pod.
fn named(pod: Option<&Pod>) -> NodeEvent {
    let Some(pod) = pod else { return NodeEvent::default() };
    let metadata = pod.with(|record| record.config.metadata.clone()).unwrap_or_default();
    NodeEvent {
        pod_id: pod.id.as_str().to_owned(),
        namespace: metadata.namespace,
        pod: metadata.name,
        ..NodeEvent::default()
    }
}
