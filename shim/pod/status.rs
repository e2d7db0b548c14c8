//! PodSandboxStatus, answered from memory. Verbose adds the data that `crictl inspectp` shows under `info`.

use std::collections::HashMap;

use berth_cni::Network;
use berth_proto::v1::PodSandboxStatusResponse;

use crate::error::CriError;
use crate::oci::{PodContext, sandbox_spec};
use crate::operation::OperationKey;
use crate::pods::Pods;
use crate::store::{Pod, PodState};
use crate::views::{container_status, pod_status};

/// Returns the response of PodSandboxStatus, with the statuses of the pod's containers.
///
/// # Errors
/// `NotFound`.
pub fn pod_sandbox_status(
    pods: &Pods,
    network: &Network,
    id: &str,
    verbose: bool,
) -> Result<PodSandboxStatusResponse, CriError> {
    let pod = pods.store.pod(id)?;
    let containers = pods.store.containers_of(&pod.id);
    Ok(PodSandboxStatusResponse {
        status: Some(pod_status(network, &pod)),
        info: if verbose { info(pods, network, &pod)? } else { HashMap::new() },
        containers_statuses: containers.iter().map(|c| container_status(c)).collect(),
        timestamp: crate::clock::now(),
    })
}

fn info(pods: &Pods, network: &Network, pod: &Pod) -> Result<HashMap<String, String>, CriError> {
    let record = pod.record();
    let pause_pid = match record.state {
        PodState::Ready { pause_pid } => pause_pid,
        _ => 0,
    };
    let folder = pods.folders.pod_state(&record.id);
    let context = PodContext {
        id: record.id.as_str(),
        config: &record.config,
        pause_pid,
        files: record.files(&folder),
        runtime_handler: &record.runtime_handler,
    };
    let operations = pods.operations.describe(|key| concerns(key, pod));
    let info = serde_json::json!({
        "pid": pause_pid,
        "state": record.state,
        "cgroup": record.cgroup,
        "runtimeHandler": record.runtime_handler,
        "runtimeSpec": sandbox_spec(&context)?,
        "cniResult": network.attachment(record.id.as_str()).map(|attachment| serde_json::json!(attachment.result)),
        "config": record.config,
        "overhead": record.resources.overhead,
        "resources": record.resources.resources,
        "operations": operations,
    });
    Ok(HashMap::from([("info".to_owned(), info.to_string())]))
}

fn concerns(key: &OperationKey, pod: &Pod) -> bool {
    match key {
        OperationKey::StopPod(id)
        | OperationKey::RemovePod(id)
        | OperationKey::Create(id, _)
        | OperationKey::CheckpointPod(id, _) => *id == pod.id,
        _ => false,
    }
}
