//! PodSandboxStats, ListPodSandboxStats and StreamPodSandboxStats.

use std::sync::Arc;

use berth_proto::v1::{LinuxPodSandboxStats, PodSandboxAttributes, PodSandboxStats, PodSandboxStatsFilter};
use berth_runtime::cgroup::{CgroupPath, Memory, Stats};

use super::usage::Reading;
use super::{StatsSources, container, network};
use crate::blocking::{blocking, blocking_each};
use crate::cgroups::Cgroups;
use crate::error::CriError;
use crate::store::{Container, Pod, PodState};

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
    container::measure(&sources.images, &containers).await;
    blocking(move || Ok::<_, CriError>(of(&sources, &pod, &containers))).await
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
    container::measure(&sources.images, &containers).await;
    blocking_each(pods, move |(pod, containers)| of(&sources, &pod, &containers)).await
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

fn of(sources: &StatsSources, pod: &Pod, containers: &[Arc<Container>]) -> PodSandboxStats {
    let of_containers: Vec<Stats> =
        containers.iter().map(|found| container::read(&sources.cgroups, found)).collect();
    let stats = read(&sources.cgroups, pod, &of_containers);
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
                .map(|(found, stats)| container::message(&sources.images, found, stats))
                .collect(),
            io: reading.io(),
        }),
        windows: None,
    }
}

/// Reads the statistics of a pod. The cgroup that the kubelet created for the pod includes all of its processes. A
/// pod without one shares berth's default parent with other pods: its statistics are the sum of the cgroups of its
/// pause and containers.
fn read(cgroups: &Cgroups, pod: &Pod, containers: &[Stats]) -> Stats {
    let stats = |path: &CgroupPath| cgroups.at(path).stats();
    if let Some(path) = kubelet_cgroup(pod) {
        return stats(&path);
    }
    let Ok(own) = pod.with(|record| CgroupPath::from_recorded(&record.cgroup)) else {
        return Stats::default();
    };
    containers.iter().fold(stats(&own), add)
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
