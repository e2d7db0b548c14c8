//! ContainerStatus, answered from memory. Verbose adds the data that `crictl inspect` shows under `info`.

use std::collections::HashMap;

use berth_proto::v1::ContainerStatusResponse;

use crate::error::CriError;
use crate::operation::OperationKey;
use crate::pods::Pods;
use crate::store::Container;
use crate::views::container_status;

/// Returns the response of ContainerStatus.
///
/// # Errors
/// `NotFound`.
pub fn container_status_response(
    pods: &Pods,
    id: &str,
    verbose: bool,
) -> Result<ContainerStatusResponse, CriError> {
    let container = pods.store.container(id)?;
    Ok(ContainerStatusResponse {
        status: Some(container_status(&container)),
        info: if verbose { info(pods, &container)? } else { HashMap::new() },
    })
}

fn info(pods: &Pods, container: &Container) -> Result<HashMap<String, String>, CriError> {
    let record = container.record();
    let info = serde_json::json!({
        "sandboxID": record.pod,
        "pid": record.state.pid().unwrap_or(0),
        "state": record.state,
        "cgroup": record.cgroup,
        "runtimeSpec": container.spec.whole()?,
        "config": record.config,
        "updateAnnotations": record.update_annotations,
        "operations": pods.operations.describe(|key| matches!(
            key,
            OperationKey::Start(id) | OperationKey::Stop(id, _) | OperationKey::Remove(id) if *id == container.id
        )),
    });
    Ok(HashMap::from([("info".to_owned(), info.to_string())]))
}
