//! Each call of a pod's life, one pod after another.

use berth_proto::v1::{
    ExecSyncRequest, NamespaceMode, RemoveContainerRequest, RemovePodSandboxRequest, StartContainerRequest,
    StopContainerRequest, StopPodSandboxRequest,
};

use crate::bench::{Bench, Isolation, Pod};
use crate::client::{Timed, timed};
use crate::error::BenchError;
use crate::figures::Samples;

/// Measures `--count` pods. One pod before them is not counted, because its caches are cold.
pub(super) async fn measure(bench: &Bench, prefix: &str, network: NamespaceMode) -> Result<(), BenchError> {
    in_turns(bench, network, &[(prefix, Isolation::Plain)]).await
}

/// Measures pods of each isolation in turns, so that other load of the machine affects all of them equally.
pub(super) async fn isolation(bench: &Bench) -> Result<(), BenchError> {
    let kinds =
        [("plain: ", Isolation::Plain), ("seccomp: ", Isolation::Seccomp), ("users: ", Isolation::Users)];
    in_turns(bench, NamespaceMode::Pod, &kinds).await
}

async fn in_turns(
    bench: &Bench,
    network: NamespaceMode,
    kinds: &[(&str, Isolation)],
) -> Result<(), BenchError> {
    for (_, isolation) in kinds {
        one(bench, "", network, *isolation, &mut Samples::default()).await?;
    }
    let mut samples = Samples::default();
    let mut result = Ok(());
    for _ in 0..bench.options.count {
        for (prefix, isolation) in kinds {
            result = one(bench, prefix, network, *isolation, &mut samples).await;
            if result.is_err() {
                break;
            }
        }
        if result.is_err() {
            break;
        }
    }
    bench.add(samples);
    result
}

async fn one(
    bench: &Bench,
    prefix: &str,
    network: NamespaceMode,
    isolation: Isolation,
    samples: &mut Samples,
) -> Result<(), BenchError> {
    let (pod, container) = start_pod(bench, prefix, network, isolation, samples).await?;
    let mut client = bench.client.runtime.clone();
    let mut push = |name: &str, took| samples.push(&format!("{prefix}{name}"), took);

    let request =
        ExecSyncRequest { container_id: container.clone(), cmd: vec!["true".to_owned()], timeout: 10 };
    push("ExecSync (first)", timed("ExecSync", client.exec_sync(request)).await?.took);

    // The workload is PID 1 and has no handler for SIGTERM. A grace period would only add waiting time.
    let request = StopContainerRequest { container_id: container.clone(), timeout: 0 };
    let stop_container = timed("StopContainer", client.stop_container(request)).await?.took;
    push("StopContainer", stop_container);
    let request = RemoveContainerRequest { container_id: container };
    let remove_container = timed("RemoveContainer", client.remove_container(request)).await?.took;
    push("RemoveContainer", remove_container);
    let request = StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
    let stop_pod = timed("StopPodSandbox", client.stop_pod_sandbox(request)).await?.took;
    push("StopPodSandbox", stop_pod);
    let request = RemovePodSandboxRequest { pod_sandbox_id: pod.id };
    let remove_pod = timed("RemovePodSandbox", client.remove_pod_sandbox(request)).await?.took;
    push("RemovePodSandbox", remove_pod);
    push("pod down", stop_container + remove_container + stop_pod + remove_pod);
    Ok(())
}

/// Starts a pod with one running container.
pub(super) async fn start_pod(
    bench: &Bench,
    prefix: &str,
    network: NamespaceMode,
    isolation: Isolation,
    samples: &mut Samples,
) -> Result<(Pod, String), BenchError> {
    let Timed { answer: pod, took: run } = bench.run_isolated_pod(network, isolation).await?;
    let Timed { answer: container, took: create } = bench.create_container(&pod, None).await?;
    let request = StartContainerRequest { container_id: container.clone() };
    let start = timed("StartContainer", bench.client.runtime.clone().start_container(request)).await?.took;
    let sums = [("create + start", create + start), ("pod up", run + create + start)];
    for (name, took) in [("RunPodSandbox", run), ("CreateContainer", create), ("StartContainer", start)]
        .into_iter()
        .chain(sums)
    {
        samples.push(&format!("{prefix}{name}"), took);
    }
    Ok((pod, container))
}
