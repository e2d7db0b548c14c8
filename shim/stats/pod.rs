//! PodSandboxStats, ListPodSandboxStats and StreamPodSandboxStats.

use std::sync::Arc;

use berth_image::ImageStore;
use berth_proto::v1::{LinuxPodSandboxStats, PodSandboxAttributes, PodSandboxStats, PodSandboxStatsFilter};
use berth_runtime::cgroup::{CgroupPath, Memory, Stats};

use super::once::OncePerKey;
use super::usage::Reading;
use super::{StatsSources, container, network};
use crate::blocking::{blocking, blocking_each};
use crate::cgroups::Cgroups;
use crate::error::CriError;
use crate::store::{Container, Pod, PodState};

/// The statistics of the cgroups that the kubelet created. Other clients can name the same one for several pods.
type SharedStats = OncePerKey<CgroupPath, Stats>;

/// Returns the statistics of one pod and its containers.
///
/// # Errors
/// The pod does not exist, or it is not ready.
pub async fn pod_sandbox_stats(sources: StatsSources, id: &str) -> Result<PodSandboxStats, CriError> {
    let pod = sources.store.pod(id)?;
    tracing::Span::current().record("pod", pod.id.as_str());
    let PodState::Ready { .. } = pod.state() else {
        return Err(CriError::precondition(format!("pod sandbox {}", pod.id), "it is not ready"));
    };
    let containers = sources.store.containers_of(&pod.id);
    sources.images.measure_layers(&container::ids(&containers)).await;
    blocking(move || {
        let mut stats = of(&sources.cgroups, &SharedStats::default(), &pod, &containers);
        add_layers(&sources.images, std::slice::from_mut(&mut stats));
        Ok::<_, CriError>(stats)
    })
    .await
}

/// Returns the statistics of all ready pods that match the filter.
///
/// # Errors
/// The daemon is shutting down.
pub async fn list_pod_sandbox_stats(
    sources: StatsSources,
    filter: Option<PodSandboxStatsFilter>,
) -> Result<Vec<PodSandboxStats>, CriError> {
    let mut pods = sources.store.pods();
    pods.retain(|pod| matches(pod, filter.as_ref()));
    let pods = sources.store.with_containers(pods);
    let containers: Vec<Arc<Container>> =
        pods.iter().flat_map(|(_, containers)| containers).cloned().collect();
    let ids = container::ids(&containers);
    let StatsSources { images, cgroups, .. } = sources;
    let shared = SharedStats::default();
    // Other threads read the cgroups while one measures.
    let read = blocking_each(pods, move |(pod, containers)| of(&cgroups, &shared, &pod, &containers));
    let ((), stats) = tokio::join!(images.measure_layers(&ids), read);
    let mut stats = stats?;
    blocking(move || {
        add_layers(&images, &mut stats);
        Ok::<_, CriError>(stats)
    })
    .await
}

fn add_layers(images: &ImageStore, pods: &mut [PodSandboxStats]) {
    let of_containers =
        pods.iter_mut().filter_map(|pod| pod.linux.as_mut()).flat_map(|pod| &mut pod.containers);
    container::add_layers(images, of_containers);
}

fn matches(pod: &Pod, filter: Option<&PodSandboxStatsFilter>) -> bool {
    pod.with(|record| {
        matches!(record.state, PodState::Ready { .. })
            && filter.is_none_or(|filter| {
                let labels = &record.config.labels;
                record.id.as_str().starts_with(&filter.id)
                    && filter.label_selector.iter().all(|(key, value)| labels.get(key) == Some(value))
            })
    })
}

/// Returns the statistics of a pod, without the writable layers of its containers.
fn of(cgroups: &Cgroups, shared: &SharedStats, pod: &Pod, containers: &[Arc<Container>]) -> PodSandboxStats {
    let (stats, of_containers) = read(cgroups, shared, pod, containers);
    let nano_cores = stats.cpu.and_then(|cpu| pod.rate.nano_cores(cpu));
    let at = crate::clock::now();
    let reading = Reading { at, stats: &stats, nano_cores };
    let network = match pod.state() {
        // In the host's network the traffic is the host's, not the pod's.
        PodState::Ready { pause_pid } if !pod.host_network() => network::of(pause_pid, at),
        _ => None,
    };
    PodSandboxStats {
        attributes: Some(pod.with(|record| PodSandboxAttributes {
            id: record.id.as_str().to_owned(),
            metadata: record.config.metadata.clone(),
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
        })),
        linux: Some(LinuxPodSandboxStats {
            cpu: reading.cpu(),
            memory: reading.memory(),
            network,
            process: reading.processes(),
            containers: containers
                .iter()
                .zip(&of_containers)
                .map(|(found, stats)| container::message(found, stats))
                .collect(),
            io: reading.io(),
        }),
        windows: None,
    }
}

/// Reads the statistics of a pod and its containers. The cgroup that the kubelet created for the pod includes all of its
/// processes. A pod without one shares berth's default parent with other pods: its statistics are the sum of the
/// cgroups of its pause and containers.
fn read(
    cgroups: &Cgroups,
    shared: &SharedStats,
    pod: &Pod,
    containers: &[Arc<Container>],
) -> (Stats, Vec<Stats>) {
    if let Some(path) = kubelet_cgroup(pod) {
        let of_containers = containers.iter().map(|found| container::read(cgroups, found)).collect();
        return (shared.get(path.clone(), || cgroups.at(&path).stats()), of_containers);
    }
    let of_container =
        |found: &Arc<Container>| container::cgroup(cgroups, found).map(|cgroup| cgroup.stats());
    let of_containers: Vec<Stats> =
        containers.iter().map(|found| of_container(found).unwrap_or_default()).collect();
    let own = pod.with(|record| CgroupPath::from_recorded(&record.cgroup));
    let sum = own.map(|own| of_containers.iter().fold(cgroups.at(&own).stats(), add)).unwrap_or_default();
    (sum, of_containers)
}

/// Returns the cgroup that the kubelet created for a pod (CRI `cgroup_parent`), if it did.
pub(crate) fn kubelet_cgroup(pod: &Pod) -> Option<CgroupPath> {
    pod.with(|record| {
        let named = record.config.linux.as_ref().is_some_and(|linux| !linux.cgroup_parent.is_empty());
        let own = CgroupPath::from_recorded(&record.cgroup).ok()?;
        named.then(|| own.parent())
    })
}

fn add(sum: Stats, more: &Stats) -> Stats {
    let both = |a: Option<u64>, b: Option<u64>| match (a, b) {
        (None, None) => None,
        (a, b) => Some(a.unwrap_or(0).saturating_add(b.unwrap_or(0))),
    };
    Stats {
        cpu: both(sum.cpu, more.cpu),
        processes: both(sum.processes, more.processes),
        memory: match (sum.memory, more.memory) {
            (Some(a), Some(b)) => Some(Memory {
                usage: a.usage + b.usage,
                working_set: a.working_set + b.working_set,
                anonymous: a.anonymous + b.anonymous,
                faults: a.faults + b.faults,
                major_faults: a.major_faults + b.major_faults,
                swap: both(a.swap, b.swap),
                ..Memory::default()
            }),
            (a, b) => a.or(b),
        },
        // Pressure is a share of time and cannot be added.
        ..Stats::default()
    }
}
