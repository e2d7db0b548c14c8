//! The page of a container.

use berth_proto::admin::{ListOperationsResponse, OperationInFlight};
use berth_proto::v1::{ContainerState, Mount};

use super::inspection::Inspection;
use super::logs::{self, PendingLog};
use super::{PageOptions, common, name_of};
use crate::cli::diag::members::{self, ContainerFacts};
use crate::cli::diag::page::Page;
use crate::cli::diag::section::{PATIENCE, gather};
use crate::cli::diag::{cgroup, files};
use crate::cli::format::time;
use crate::cli::node::NodeClient;
use crate::cli::node::select::Objects;
use crate::cli::ps::ObjectState;

pub(super) async fn page(
    node: &mut NodeClient,
    objects: &Objects<'_>,
    running: &ListOperationsResponse,
    id: &str,
    options: PageOptions,
) -> Result<Page, String> {
    let container = members::container(node, id).await?;
    let listed = objects.containers.iter().find(|listed| listed.id == id);
    let pod_id = listed.map(|listed| listed.pod_sandbox_id.clone()).unwrap_or_default();
    let pod = members::pod(node, &pod_id).await?;
    let of_pod =
        |operation: &OperationInFlight| operation.pod_id == pod_id && operation.container_id.is_empty();
    let concerns = |operation: &OperationInFlight| operation.container_id == id || of_pod(operation);
    let common = common(node, running, &pod, concerns).await;
    let exits = members::exits(node, objects, &container).await;
    let (path, ended) = (container.cgroup.clone(), container.has_ended());
    let limits = gather(PATIENCE, move || match ended {
        true => Err("the container has exited".to_owned()),
        false => cgroup::read(&path).map(|seen| cgroup::figures(&seen.counters)),
    });
    let (volumes, pid) = (volumes(&container.status.mounts), container.pid);
    let mounts = gather(PATIENCE, move || {
        let seen = pid.map(files::mounts).transpose()?.unwrap_or_default();
        Ok(volumes.into_iter().chain(seen).collect())
    });
    let log = logs::log(&container, options);
    let subjects = container.subject().into_iter().collect();
    let inspection = Inspection::collect(&common, &pod, subjects, &[], options);
    let status = &container.status;
    let since = match status.state() {
        ContainerState::ContainerRunning => status.started_at,
        ContainerState::ContainerExited => status.finished_at,
        _ => status.created_at,
    };
    Ok(Page {
        kind: "container",
        id: id.to_owned(),
        name: format!("{}/{}", name_of(&pod), container.name()),
        attempt: container.attempt(),
        image: status.image.as_ref().map(|image| image.image.clone()).unwrap_or_default(),
        state: ObjectState::of_container(status.state()).text().to_owned(),
        since: time(since),
        reason: reason(&container),
        pod_id,
        cgroup: container.cgroup.clone(),
        limits: limits.wait(),
        mounts: mounts.wait(),
        logs: log.into_iter().map(PendingLog::wait).collect(),
        exits,
        ..inspection.page(common, options)
    })
}

fn reason(container: &ContainerFacts) -> String {
    let status = &container.status;
    if !container.has_ended() {
        return String::new();
    }
    let message = berth_image::printable(&status.message, 1000);
    format!("{} (code {}) {message}", status.reason, status.exit_code).trim_end().to_owned()
}

fn volumes(mounts: &[Mount]) -> Vec<String> {
    let shown = mounts.iter().map(|mount| {
        let source = match mount.image.as_ref() {
            Some(image) if mount.host_path.is_empty() => format!("image {}", image.image),
            _ => mount.host_path.clone(),
        };
        let access = if mount.readonly { "ro" } else { "rw" };
        format!("volume {source} -> {} ({access})", mount.container_path)
    });
    shown.collect()
}
