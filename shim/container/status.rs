//! ContainerStatus, answered from memory. Verbose adds the data that `crictl inspect` shows under `info`.

use std::collections::HashMap;

use berth_proto::v1::ContainerStatusResponse;

use crate::daemon::Daemon;
use crate::error::CriError;
use crate::operation::Key;
use crate::store::Container;
use crate::views::container_status;

/// Returns the response of ContainerStatus.
///
/// # Errors
/// `NotFound`.
pub fn container_status_response(
    daemon: &Daemon,
    id: &str,
    verbose: bool,
) -> Result<ContainerStatusResponse, CriError> {
    let container = daemon.store.container(id)?;
    Ok(ContainerStatusResponse {
        status: Some(container_status(&container)),
        info: if verbose { info(daemon, &container)? } else { HashMap::new() },
    })
}

fn info(daemon: &Daemon, container: &Container) -> Result<HashMap<String, String>, CriError> {
    let record = container.record();
    let info = serde_json::json!({
        "sandboxID": record.pod,
        "pid": record.state.pid().unwrap_or(0),
        "state": record.state,
        "cgroup": record.cgroup,
        "runtimeSpec": container.spec.whole()?,
        "config": record.config,
        "updateAnnotations": record.update_annotations,
        "operations": daemon.operations.describe(|key| matches!(
            key,
            Key::Start(id) | Key::Stop(id, _) | Key::Remove(id) if *id == container.id
        )),
    });
    Ok(HashMap::from([("info".to_owned(), info.to_string())]))
}
