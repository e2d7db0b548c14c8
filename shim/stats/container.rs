//! ContainerStats, ListContainerStats and StreamContainerStats.

use std::sync::Arc;

use berth_image::ImageStore;
use berth_proto::v1::{
    ContainerAttributes, ContainerStats, ContainerStatsFilter, FilesystemIdentifier, FilesystemUsage,
};
use berth_runtime::cgroup::{Cgroup, CgroupPath, Stats};

use super::StatsSources;
use super::usage::{Reading, value};
use crate::blocking::{blocking, blocking_each};
use crate::cgroups::Cgroups;
use crate::error::CriError;
use crate::store::{Container, ContainerState};

/// Returns the statistics of one container. An exited container has only those of its writable layer.
///
/// # Errors
/// The container does not exist.
pub async fn container_stats(sources: StatsSources, id: &str) -> Result<ContainerStats, CriError> {
    let container = sources.store.container(id)?;
    tracing::Span::current().record("container", container.id.as_str());
    sources.images.measure_layers(&[container.id.as_str().to_owned()]).await;
    blocking(move || {
        let mut stats = message(&container, &read(&sources.cgroups, &container));
        add_layers(&sources.images, std::iter::once(&mut stats));
        Ok::<_, CriError>(stats)
    })
    .await
}

/// Returns the statistics of all containers that have not exited and match the filter.
///
/// # Errors
/// The daemon is shutting down.
pub async fn list_container_stats(
    sources: StatsSources,
    filter: Option<ContainerStatsFilter>,
) -> Result<Vec<ContainerStats>, CriError> {
    let mut containers = sources.store.containers();
    containers.retain(|container| matches(container, filter.as_ref()));
    let ids = ids(&containers);
    let images = sources.images.clone();
    // Other threads read the cgroups while one measures.
    let read =
        blocking_each(containers, move |container| message(&container, &read(&sources.cgroups, &container)));
    let ((), stats) = tokio::join!(images.measure_layers(&ids), read);
    let mut stats = stats?;
    blocking(move || {
        add_layers(&images, stats.iter_mut());
        Ok::<_, CriError>(stats)
    })
    .await
}

/// Returns the ids of containers, for the measurement of their writable layers.
pub(super) fn ids(containers: &[Arc<Container>]) -> Vec<String> {
    containers.iter().map(|container| container.id.as_str().to_owned()).collect()
}

/// Adds the last measurement of each writable layer.
pub(super) fn add_layers<'s>(images: &ImageStore, stats: impl Iterator<Item = &'s mut ContainerStats>) {
    for container in stats {
        let id = container.attributes.as_ref().map(|attributes| attributes.id.as_str());
        container.writable_layer = id.and_then(|id| writable_layer(images, id));
    }
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

/// Returns the cgroup of a container; none if the container has exited.
pub(super) fn cgroup(cgroups: &Cgroups, container: &Container) -> Option<Cgroup> {
    let path = container.with(|record| match record.state {
        ContainerState::Exited(_) => None,
        _ => CgroupPath::from_recorded(&record.cgroup).ok(),
    });
    path.map(|path| cgroups.at(&path))
}

/// Reads the statistics of a container; they are empty if it has exited.
pub(super) fn read(cgroups: &Cgroups, container: &Container) -> Stats {
    cgroup(cgroups, container).map(|cgroup| cgroup.stats_without_processes()).unwrap_or_default()
}

/// Returns the statistics of a container from those of its cgroup, without its writable layer.
pub(super) fn message(container: &Container, stats: &Stats) -> ContainerStats {
    let nano_cores = stats.cpu.and_then(|cpu| container.rate.nano_cores(cpu));
    let at = crate::clock::now();
    let reading = Reading { at, stats, nano_cores };
    ContainerStats {
        attributes: Some(container.with(|record| ContainerAttributes {
            id: record.id.as_str().to_owned(),
            metadata: record.config.metadata.clone(),
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
        })),
        cpu: reading.cpu(),
        memory: reading.memory(),
        writable_layer: None,
        swap: reading.swap(),
        io: reading.io(),
    }
}

/// Returns the usage of the writable layer with the time of its measurement, which can be some time ago for a
/// container with very many files.
fn writable_layer(images: &ImageStore, id: &str) -> Option<FilesystemUsage> {
    let usage = images.layer_usage(id)?;
    Some(FilesystemUsage {
        timestamp: usage.at,
        fs_id: Some(FilesystemIdentifier { mountpoint: usage.mountpoint.display().to_string() }),
        used_bytes: value(usage.bytes),
        inodes_used: value(usage.inodes),
    })
}
