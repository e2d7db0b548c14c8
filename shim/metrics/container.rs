//! The metrics of a container.

use std::collections::HashMap;
use std::sync::Arc;

use berth_proto::v1::ContainerMetrics;
use berth_runtime::cgroup::{CgroupPath, Counters};

use super::collector::{Collector, SeriesLabels};
use super::descriptors::{CREATION_TIME, LAST_SEEN, START_TIME};
use super::filesystem::{DeviceNames, Filesystem};
use super::process::{Budget, Census};
use super::{cgroup, process};
use crate::ids::ContainerId;
use crate::stats::StatsSources;
use crate::stats::once::OncePerKey;
use crate::store::{Container, ContainerRecord, ContainerState};

/// Values that the containers of one request share.
#[derive(Debug)]
pub(super) struct MetricSources {
    pub(super) stats: StatsSources,
    /// The filesystem of the writable layers.
    pub(super) filesystem: Option<Filesystem>,
    /// The sizes of the logs.
    pub(super) logs: HashMap<ContainerId, u64>,
    /// The processes of all cgroups.
    pub(super) census: Census,
    /// The counters of the cgroups that the kubelet created. Other clients can name the same one for several pods.
    pub(super) of_pods: OncePerKey<CgroupPath, Arc<Counters>>,
    /// The names of the block devices, by their numbers.
    pub(super) devices: DeviceNames,
}

/// Returns the metrics of a container, or `None` if it is not running. `pod` has the labels of its pod.
pub(super) fn metrics(
    sources: &MetricSources,
    pod: &SeriesLabels,
    container: &Container,
    budget: &mut Budget,
) -> Option<ContainerMetrics> {
    let ContainerState::Running { pid, started_at } = container.state() else { return None };
    let (path, labels) = container.with(|record| {
        let path = CgroupPath::from_recorded(&record.cgroup).ok()?;
        let labels = labels(record, &path, pod);
        Some((path, labels))
    })?;
    let now = crate::clock::now();
    let mut collector = Collector::new(labels, now);
    collector.add(&CREATION_TIME, seconds(container.created_at));
    collector.add(&START_TIME, seconds(started_at));
    collector.add(&LAST_SEEN, seconds(now));
    let cgroup = sources.stats.cgroups.at(&path);
    cgroup::add(&mut collector, &cgroup.counters(), &sources.devices);
    process::add(&mut collector, &sources.census, &cgroup, budget);
    process::add_limits(&mut collector, pid);
    if let Some(filesystem) = &sources.filesystem {
        let layer = sources.stats.images.layer_usage(container.id.as_str());
        let log = sources.logs.get(&container.id).copied().unwrap_or(0);
        filesystem.add(&mut collector, layer.map(|layer| layer.bytes.saturating_add(log)));
    }
    Some(ContainerMetrics { container_id: container.id.as_str().to_owned(), metrics: collector.finish() })
}

fn labels(record: &ContainerRecord, path: &CgroupPath, pod: &SeriesLabels) -> SeriesLabels {
    let metadata = record.config.metadata.as_ref();
    let image = record.image.as_ref().or(record.config.image.as_ref());
    SeriesLabels {
        container: metadata.map(|metadata| metadata.name.clone()).unwrap_or_default(),
        id: path.to_string(),
        image: image.map(|image| image.image.clone()).unwrap_or_default(),
        name: record.id.as_str().to_owned(),
        ..pod.clone()
    }
}

/// Converts a time of the CRI to seconds.
pub(super) fn seconds(nanoseconds: i64) -> Option<u64> {
    u64::try_from(nanoseconds / 1_000_000_000).ok()
}
