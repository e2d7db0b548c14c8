//! ContainerStatus, answered from memory. Verbose adds the data that `crictl inspect` shows under `info`.

use std::collections::HashMap;

use berth_proto::v1::{
    ContainerResources, ContainerStatus, ContainerStatusResponse, ContainerUser, LinuxContainerUser,
};

use super::list::state;
use crate::daemon::Daemon;
use crate::error::CriError;
use crate::operation::Key;
use crate::spec::stop_signal_number;
use crate::store::{Container, ContainerState};

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

/// Returns the CRI status of a container.
#[must_use]
pub fn container_status(container: &Container) -> ContainerStatus {
    let record = container.record();
    let limits = record.limits();
    let config = record.config;
    let mut status = ContainerStatus {
        id: record.id.as_str().to_owned(),
        metadata: config.metadata,
        state: state(&record.state).into(),
        created_at: record.created_at,
        image: record.image.or(config.image),
        image_ref: record.image_ref,
        labels: config.labels,
        annotations: config.annotations,
        mounts: config.mounts,
        log_path: record.log_path.unwrap_or_default(),
        resources: Some(ContainerResources { linux: Some(limits), windows: None }),
        image_id: record.image_id,
        user: Some(ContainerUser {
            linux: Some(LinuxContainerUser {
                uid: record.user.uid.into(),
                gid: record.user.gid.into(),
                supplemental_groups: record.user.groups.iter().map(|gid| i64::from(*gid)).collect(),
            }),
        }),
        stop_signal: stop_signal_number(record.stop_signal),
        ..ContainerStatus::default()
    };
    match record.state {
        ContainerState::Creating | ContainerState::Created { .. } => {}
        ContainerState::Running { started_at, .. } => status.started_at = started_at,
        ContainerState::Exited(exit) => {
            status.started_at = exit.started_at;
            status.finished_at = exit.finished_at;
            status.exit_code = exit.code;
            exit.reason.as_str().clone_into(&mut status.reason);
            status.message = exit.message;
        }
    }
    status
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
