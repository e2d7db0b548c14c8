//! ContainerStats, ListContainerStats and StreamContainerStats.

use std::sync::Arc;

use berth_proto::v1::{
    ContainerAttributes, ContainerStats, ContainerStatsFilter, FilesystemIdentifier, FilesystemUsage,
};
use berth_runtime::cgroup::{Cgroup, CgroupPath, Stats};

use super::usage::{Reading, value};
use crate::blocking::blocking;
use crate::daemon::{Daemon, Shared};
use crate::error::CriError;
use crate::store::{Container, ContainerState};

/// Returns the statistics of one container. An exited container has only those of its writable layer.
///
/// # Errors
/// The container does not exist.
pub async fn container_stats(daemon: &Shared, id: &str) -> Result<ContainerStats, CriError> {
    let container = daemon.store.container(id)?;
    tracing::Span::current().record("container", container.id.as_str());
    daemon.images.measure_layers(&[container.id.as_str().to_owned()]).await;
    let daemon = daemon.clone();
    blocking(move || Ok::<_, CriError>(of(&daemon, &container))).await
}

/// Returns the statistics of all containers that have not exited and match the filter.
///
/// # Errors
/// The daemon is shutting down.
pub async fn list_container_stats(
    daemon: &Shared,
    filter: Option<ContainerStatsFilter>,
) -> Result<Vec<ContainerStats>, CriError> {
    let mut containers = daemon.store.containers();
    containers.retain(|container| matches(container, filter.as_ref()));
    measure(daemon, &containers).await;
    let daemon = daemon.clone();
    blocking(move || Ok::<_, CriError>(containers.iter().map(|container| of(&daemon, container)).collect()))
        .await
}

/// Measures the writable layers of containers.
pub(super) async fn measure(daemon: &Daemon, containers: &[Arc<Container>]) {
    let ids: Vec<String> = containers.iter().map(|container| container.id.as_str().to_owned()).collect();
    daemon.images.measure_layers(&ids).await;
}

fn matches(container: &Arc<Container>, filter: Option<&ContainerStatsFilter>) -> bool {
    container.with(|record| {
        !matches!(record.state, ContainerState::Exited(_))
            && filter.is_none_or(|filter| {
                let labels = &record.config.labels;
                record.id.as_str().starts_with(&filter.id)
                    && record.pod.as_str().starts_with(&filter.pod_sandbox_id)
                    && filter.label_selector.iter().all(|(key, value)| labels.get(key) == Some(value))
            })
    })
}

/// Reads the statistics of a container's cgroup; they are empty if the container has exited.
pub(super) fn read(daemon: &Daemon, container: &Container) -> Stats {
    let path = container.with(|record| match record.state {
        ContainerState::Exited(_) => None,
        _ => CgroupPath::from_recorded(&record.cgroup).ok(),
    });
    path.map(|path| Cgroup::open(&daemon.hierarchies, &path).stats()).unwrap_or_default()
}

/// Returns the statistics of a container.
pub(super) fn of(daemon: &Daemon, container: &Container) -> ContainerStats {
    let stats = read(daemon, container);
    let nano_cores = stats.cpu.and_then(|cpu| container.rate.nano_cores(cpu));
    let at = crate::clock::now();
    let reading = Reading { at, stats: &stats, nano_cores };
    ContainerStats {
        attributes: Some(container.with(|record| ContainerAttributes {
            id: record.id.as_str().to_owned(),
            metadata: record.config.metadata.clone(),
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
        })),
        cpu: reading.cpu(),
        memory: reading.memory(),
        writable_layer: writable_layer(daemon, container),
        swap: reading.swap(),
        io: reading.io(),
    }
}

/// Returns the usage of the writable layer with the time of its measurement, which can be some time ago for a
/// container with very many files.
fn writable_layer(daemon: &Daemon, container: &Container) -> Option<FilesystemUsage> {
    let usage = daemon.images.layer_usage(container.id.as_str())?;
    Some(FilesystemUsage {
        timestamp: usage.at,
        fs_id: Some(FilesystemIdentifier { mountpoint: usage.mountpoint.display().to_string() }),
        used_bytes: value(usage.bytes),
        inodes_used: value(usage.inodes),
    })
}
