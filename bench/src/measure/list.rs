//! Lists and status with many pods: the calls that the kubelet repeats every second.

use berth_proto::v1::{
    ContainerFilter, ContainerStatusRequest, ListContainerStatsRequest, ListContainersRequest,
    ListPodSandboxMetricsRequest, ListPodSandboxRequest, ListPodSandboxStatsRequest, PodSandboxStatusRequest,
};
use tonic::Code;

use super::memory::daemon;
use super::parallel::start_pods;
use crate::bench::Bench;
use crate::client::timed;
use crate::error::BenchError;
use crate::figures::Samples;

/// The number of calls of each kind.
const TIMES: usize = 100;

/// The number of calls for statistics of each kind.
const STATISTICS: usize = 20;

pub(super) async fn measure(bench: &Bench) -> Result<(), BenchError> {
    let count = usize::try_from(bench.options.pods).unwrap_or(usize::MAX);
    let pods = start_pods(bench, count).await?;
    let mut client = bench.client.runtime.clone();
    let mut samples = Samples::default();
    for (pod, container) in pods.iter().cycle().take(TIMES) {
        let mut push = |name: &str, took| samples.push(&format!("{name}, {count} pods"), took);

        let list = timed("ListPodSandbox", client.list_pod_sandbox(ListPodSandboxRequest::default())).await?;
        if list.answer.items.len() < count {
            return Err(BenchError::Answer { rpc: "ListPodSandbox", what: "entry for each pod" });
        }
        push("ListPodSandbox", list.took);
        let list = timed("ListContainers", client.list_containers(ListContainersRequest::default())).await?;
        if list.answer.containers.len() < count {
            return Err(BenchError::Answer { rpc: "ListContainers", what: "entry for each container" });
        }
        push("ListContainers", list.took);

        let filter = ContainerFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() };
        let request = ListContainersRequest { filter: Some(filter) };
        push("ListContainers of a pod", timed("ListContainers", client.list_containers(request)).await?.took);
        let request = PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: false };
        push("PodSandboxStatus", timed("PodSandboxStatus", client.pod_sandbox_status(request)).await?.took);
        let request = ContainerStatusRequest { container_id: container.clone(), verbose: false };
        push("ContainerStatus", timed("ContainerStatus", client.container_status(request)).await?.took);
    }
    bench.add(samples);
    statistics(bench, count).await?;
    daemon(bench, &format!("daemon, PSS with {count} pods"));
    Ok(())
}

/// Statistics and metrics of all pods. A runtime that has no such call is not measured.
async fn statistics(bench: &Bench, count: usize) -> Result<(), BenchError> {
    let mut client = bench.client.runtime.clone();
    let mut samples = Samples::default();
    for _ in 0..STATISTICS {
        let request = ListContainerStatsRequest::default();
        let stats = timed("ListContainerStats", client.list_container_stats(request)).await?;
        samples.push(&format!("ListContainerStats, {count} pods"), stats.took);
        let request = ListPodSandboxStatsRequest::default();
        if let Some(stats) =
            measured(timed("ListPodSandboxStats", client.list_pod_sandbox_stats(request)).await)?
        {
            samples.push(&format!("ListPodSandboxStats, {count} pods"), stats.took);
        }
        let request = ListPodSandboxMetricsRequest::default();
        let metrics = timed("ListPodSandboxMetrics", client.list_pod_sandbox_metrics(request)).await;
        if let Some(metrics) = measured(metrics)? {
            samples.push(&format!("ListPodSandboxMetrics, {count} pods"), metrics.took);
        }
    }
    bench.add(samples);
    Ok(())
}

/// Returns none for a call that the runtime does not have.
fn measured<T>(call: Result<T, BenchError>) -> Result<Option<T>, BenchError> {
    match call {
        Err(BenchError::Rpc { status, .. }) if status.code() == Code::Unimplemented => Ok(None),
        call => call.map(Some),
    }
}
