//! ListPodSandboxMetrics and StreamPodSandboxMetrics.

use std::sync::Arc;

use berth_proto::v1::PodSandboxMetrics;
use berth_runtime::cgroup::CgroupPath;

use super::collector::{Collector, SeriesLabels};
use super::container::{self, MetricSources, seconds};
use super::descriptors::{CREATION_TIME, LAST_SEEN, START_TIME};
use super::filesystem::{DeviceNames, Filesystem};
use super::process::{Budget, Census};
use super::{cgroup, log, network, process};
use crate::blocking::{blocking, blocking_each};
use crate::error::CriError;
use crate::stats::once::OncePerKey;
use crate::stats::{self, StatsSources};
use crate::store::{Container, ContainerState, Pod, PodState, Store};

/// A ready pod with its running containers.
type RunningPod = (Arc<Pod>, Vec<Arc<Container>>);

/// Returns the metrics of all ready pods and their running containers.
///
/// # Errors
/// The daemon is shutting down.
pub async fn list_pod_sandbox_metrics(stats: StatsSources) -> Result<Vec<PodSandboxMetrics>, CriError> {
    let pods = running(&stats.store);
    let containers = || pods.iter().flat_map(|(_, containers)| containers);
    let ids: Vec<String> = containers().map(|container| container.id.as_str().to_owned()).collect();
    let log = |container: &Arc<Container>| {
        Some((container.id.clone(), container.with(|record| record.log_path.clone())?))
    };
    let logs = containers().filter_map(log).collect();
    let ((), logs) = tokio::join!(stats.images.measure_layers(&ids), log::sizes(logs));
    let root = stats.images.root().to_owned();
    let filesystem = blocking(move || Ok::<_, CriError>(Filesystem::of(&root))).await?;
    let sources = MetricSources {
        stats,
        filesystem,
        logs,
        census: Census::default(),
        of_pods: OncePerKey::default(),
        devices: DeviceNames::default(),
    };
    let of_pods = blocking_each(pods, move |pod| metrics(&sources, &pod)).await?;
    Ok(of_pods.into_iter().flatten().collect())
}

fn running(store: &Store) -> Vec<RunningPod> {
    let ready = store.pods().into_iter().filter(|pod| matches!(pod.state(), PodState::Ready { .. }));
    let mut pods = store.with_containers(ready.collect());
    for (_, containers) in &mut pods {
        containers.retain(|container| matches!(container.state(), ContainerState::Running { .. }));
    }
    pods
}

/// Returns the metrics of a pod, or `None` if it is no longer ready.
fn metrics(sources: &MetricSources, (pod, containers): &RunningPod) -> Option<PodSandboxMetrics> {
    let PodState::Ready { pause_pid } = pod.state() else { return None };
    let kubelet_cgroup = stats::pod::kubelet_cgroup(pod);
    let labels = labels(pod, kubelet_cgroup.as_ref());
    let mut budget = Budget::default();
    let of_container =
        |container: &Arc<Container>| container::metrics(sources, &labels, container, &mut budget);
    let container_metrics = containers.iter().filter_map(of_container).collect();
    let now = crate::clock::now();
    let mut collector = Collector::new(labels, now);
    collector.add(&CREATION_TIME, seconds(pod.created_at));
    collector.add(&START_TIME, seconds(pod.created_at));
    collector.add(&LAST_SEEN, seconds(now));
    if let Some(path) = kubelet_cgroup {
        add_cgroup(&mut collector, sources, path, &mut budget);
    }
    // In the host's network the traffic is the host's, not the pod's.
    if !pod.host_network() {
        network::add(&mut collector, pause_pid);
    }
    Some(PodSandboxMetrics {
        pod_sandbox_id: pod.id.as_str().to_owned(),
        metrics: collector.finish(),
        container_metrics,
    })
}

/// Adds the metrics of the cgroup that the kubelet created for a pod. A pod without one shares berth's default cgroup
/// with other pods: there are no metrics of its cgroup.
fn add_cgroup(collector: &mut Collector, sources: &MetricSources, path: CgroupPath, budget: &mut Budget) {
    let cgroup = sources.stats.cgroups.at(&path);
    let counters = sources.of_pods.get(path, || Arc::new(cgroup.counters()));
    cgroup::add(collector, &counters, &sources.devices);
    process::add(collector, &sources.census, &cgroup, budget);
}

/// Returns the labels of a pod. `cgroup` is the one that the kubelet created for it.
fn labels(pod: &Pod, cgroup: Option<&CgroupPath>) -> SeriesLabels {
    pod.with(|record| {
        let metadata = record.config.metadata.as_ref();
        SeriesLabels {
            id: cgroup.map_or_else(|| record.cgroup.clone(), ToString::to_string),
            name: record.id.as_str().to_owned(),
            namespace: metadata.map(|metadata| metadata.namespace.clone()).unwrap_or_default(),
            pod: metadata.map(|metadata| metadata.name.clone()).unwrap_or_default(),
            ..SeriesLabels::default()
        }
    })
}
