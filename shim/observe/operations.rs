//! ListOperations: what the daemon is doing, from memory.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use berth_cni::Network;
use berth_image::{ImageStore, LayerProgress, Stage, printable};
use berth_proto::admin::{ListOperationsResponse, OperationInFlight, PluginCall, RunningPull};

use crate::ids::ContainerId;
use crate::operation::{OperationKey, OperationSnapshot};
use crate::pods::Pods;
use crate::store::Store;

/// The longest text of a plugin or a reference.
const MAX_TEXT: usize = 4000;

/// Returns the operations, network plugins and pulls in flight.
#[must_use]
pub fn list(pods: &Pods, network: &Network, images: &ImageStore) -> ListOperationsResponse {
    let now = crate::clock::now();
    ListOperationsResponse {
        operations: pods
            .operations
            .in_flight()
            .into_iter()
            .map(|seen| shown(&pods.store, seen, now))
            .collect(),
        plugins: network.plugin_calls().into_iter().map(plugin).collect(),
        pulls: images.running_pulls().into_iter().map(|(image, layers)| pull(&image, &layers)).collect(),
    }
}

fn shown(store: &Store, seen: OperationSnapshot, now: i64) -> OperationInFlight {
    let before =
        |elapsed: Duration| now.saturating_sub(i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX));
    let base = OperationInFlight {
        step: seen.step.to_owned(),
        started_at: before(seen.elapsed),
        step_started_at: before(seen.step_elapsed),
        ..OperationInFlight::default()
    };
    let created = seen.creates.unwrap_or_default();
    let of_pod =
        |rpc: &str, id: String| OperationInFlight { rpc: rpc.to_owned(), pod_id: id, ..base.clone() };
    let of_container = |rpc: &str, id: &ContainerId| {
        let pod = store.container(id.as_str()).map(|found| found.pod.as_str().to_owned());
        let container_id = id.as_str().to_owned();
        OperationInFlight { container_id, ..of_pod(rpc, pod.unwrap_or_default()) }
    };
    match &seen.key {
        OperationKey::RunPod(name) | OperationKey::RestorePod(name) => OperationInFlight {
            namespace: name.namespace().to_owned(),
            name: name.name().to_owned(),
            ..of_pod(seen.key.rpc(), created)
        },
        OperationKey::CheckpointPod(id, _) => of_pod("CheckpointPod", id.as_str().to_owned()),
        OperationKey::StopPod(id) => of_pod("StopPodSandbox", id.as_str().to_owned()),
        OperationKey::RemovePod(id) => of_pod("RemovePodSandbox", id.as_str().to_owned()),
        OperationKey::Create(pod, name) => OperationInFlight {
            container_id: created,
            name: name.name().to_owned(),
            ..of_pod("CreateContainer", pod.as_str().to_owned())
        },
        OperationKey::Start(id) => of_container("StartContainer", id),
        OperationKey::Stop(id, _) => of_container("StopContainer", id),
        OperationKey::Remove(id) => of_container("RemoveContainer", id),
        OperationKey::Checkpoint(id, _) => of_container("CheckpointContainer", id),
    }
}

fn plugin(call: berth_cni::PluginCall) -> PluginCall {
    PluginCall {
        plugin: call.plugin,
        command: call.command,
        pod_id: call.pod,
        pid: i32::try_from(call.pid).unwrap_or_default(),
        started_at: nanoseconds(call.started),
        stderr: printable(&call.stderr, MAX_TEXT),
    }
}

fn nanoseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

fn pull(image: &str, layers: &[LayerProgress]) -> RunningPull {
    let done = layers.iter().filter(|layer| layer.stage == Stage::Done);
    RunningPull {
        image: printable(image, MAX_TEXT),
        layers: u32::try_from(layers.len()).unwrap_or(u32::MAX),
        layers_done: u32::try_from(done.count()).unwrap_or(u32::MAX),
        size: layers.iter().map(|layer| layer.size).sum(),
        received: layers.iter().map(|layer| layer.received).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_is_the_sum_of_its_layers() {
        let layer = |size, received, stage| LayerProgress { digest: String::new(), size, received, stage };
        let layers =
            [layer(10, 10, Stage::Done), layer(30, 5, Stage::Receiving), layer(7, 0, Stage::Waiting)];
        let shown = pull("a.test/b:1\u{1b}", &layers);
        assert_eq!((shown.layers, shown.layers_done, shown.size, shown.received), (3, 1, 47, 15));
        assert_eq!(shown.image, "a.test/b:1\\u{1b}");
    }
}
