//! The CRI's view of pods and containers: states and statuses, made from their records. Status calls, lists and events use it.

use berth_cni::Network;
use berth_proto::v1::{
    ContainerResources, ContainerState as CriContainerState, ContainerStatus, ContainerUser,
    LinuxContainerUser, LinuxPodSandboxStatus, Namespace, PodIp, PodSandboxNetworkStatus, PodSandboxState,
    PodSandboxStatus,
};

use crate::oci::{pod_modes, stop_signal_number};
use crate::store::{Container, ContainerState, Pod, PodState};

/// Returns the CRI's state of a container.
#[must_use]
pub fn container_state(state: &ContainerState) -> CriContainerState {
    match state {
        ContainerState::Creating | ContainerState::Created { .. } => CriContainerState::ContainerCreated,
        ContainerState::Running { .. } => CriContainerState::ContainerRunning,
        ContainerState::Exited(_) => CriContainerState::ContainerExited,
    }
}

/// Returns the CRI status of a container.
#[must_use]
pub fn container_status(container: &Container) -> ContainerStatus {
    let record = container.record();
    let limits = record.limits();
    let config = record.config;
    let mut status = ContainerStatus {
        id: record.id.as_str().to_owned(),
        metadata: config.metadata,
        state: container_state(&record.state).into(),
        created_at: record.created_at,
        image: record.image.or(config.image),
        image_ref: record.image_ref,
        labels: config.labels,
        annotations: config.annotations,
        mounts: config.mounts,
        log_path: record.log_path.unwrap_or_default(),
        resources: Some(ContainerResources { linux: Some(limits), windows: None }),
        image_id: record.image_id,
        user: Some(ContainerUser {
            linux: Some(LinuxContainerUser {
                uid: record.user.uid.into(),
                gid: record.user.gid.into(),
                supplemental_groups: record.user.groups.iter().map(|gid| i64::from(*gid)).collect(),
            }),
        }),
        stop_signal: stop_signal_number(record.stop_signal),
        ..ContainerStatus::default()
    };
    match record.state {
        ContainerState::Creating | ContainerState::Created { .. } => {}
        ContainerState::Running { started_at, .. } => status.started_at = started_at,
        ContainerState::Exited(exit) => {
            status.started_at = exit.started_at;
            status.finished_at = exit.finished_at;
            status.exit_code = exit.code;
            exit.reason.as_str().clone_into(&mut status.reason);
            status.message = exit.message;
        }
    }
    status
}

/// Returns the CRI's state of a pod.
#[must_use]
pub fn pod_state(state: &PodState) -> PodSandboxState {
    match state {
        PodState::Ready { .. } => PodSandboxState::SandboxReady,
        PodState::Creating | PodState::Lost | PodState::NotReady { .. } => PodSandboxState::SandboxNotready,
    }
}

/// Returns the CRI status of a pod.
#[must_use]
pub fn pod_status(network: &Network, pod: &Pod) -> PodSandboxStatus {
    let addresses = addresses(network, pod);
    pod.with(|record| PodSandboxStatus {
        id: record.id.as_str().to_owned(),
        metadata: record.config.metadata.clone(),
        state: pod_state(&record.state).into(),
        created_at: record.created_at,
        network: Some(addresses),
        linux: Some(LinuxPodSandboxStatus {
            namespaces: Some(Namespace { options: Some(pod_modes(&record.config)) }),
        }),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.runtime_handler.clone(),
    })
}

/// Returns the addresses of a ready pod in the order of the network's config; none for a pod in the host's network,
/// as in containerd.
fn addresses(network: &Network, pod: &Pod) -> PodSandboxNetworkStatus {
    let attachment = match pod.state() {
        PodState::Ready { .. } => network.attachment(pod.id.as_str()),
        _ => None,
    };
    let mut ips = attachment.into_iter().flat_map(|attachment| attachment.ips).map(|ip| ip.to_string());
    PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| PodIp { ip }).collect(),
    }
}
