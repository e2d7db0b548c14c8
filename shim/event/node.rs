//! The events of the node that `berth events` shows: the life cycle of pods and containers, OOM kills, and failures.

use berth_proto::admin::{NodeEvent, NodeEventKind as Kind};
use berth_proto::v1::ContainerEventType;

use crate::store::{Container, ContainerState, ExitReason, Pod};

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

/// Returns the events of a container: an exit by an OOM kill is two events.
pub(super) fn of_container(
    pod: Option<&Pod>,
    container: &Container,
    kind: ContainerEventType,
) -> Vec<NodeEvent> {
    let base = container.with(|record| NodeEvent {
        container_id: record.id.as_str().to_owned(),
        container: record.config.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default(),
        pod_id: record.pod.as_str().to_owned(),
        ..named(pod)
    });
    let of = |kind: Kind| NodeEvent { kind: kind.into(), ..base.clone() };
    match kind {
        ContainerEventType::ContainerCreatedEvent => vec![of(Kind::ContainerCreated)],
        ContainerEventType::ContainerStartedEvent => vec![of(Kind::ContainerStarted)],
        ContainerEventType::ContainerDeletedEvent => vec![of(Kind::ContainerDeleted)],
        ContainerEventType::ContainerStoppedEvent => {
            let ContainerState::Exited(exit) = container.state() else {
                return vec![of(Kind::ContainerExited)];
            };
            let exited = NodeEvent {
                reason: exit.reason.as_str().to_owned(),
                message: exit.message,
                exit_code: exit.code,
                ..of(Kind::ContainerExited)
            };
            match exit.reason {
                ExitReason::OomKilled => vec![of(Kind::OomKilled), exited],
                _ => vec![exited],
            }
        }
    }
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
