//! The page of a pod.

use berth_proto::admin::ListOperationsResponse;
use berth_proto::v1::{ContainerState, PodSandboxState};

use super::inspection::Inspection;
use super::logs::{self, PendingLog};
use super::{PageOptions, common, name_of, summaries};
use crate::cli::diag::members::{self, ContainerFacts, Subject};
use crate::cli::diag::page::{Member, Page};
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
    let pod = members::pod(node, id).await?;
    let containers = members::containers(node, objects, id).await;
    let common = common(node, running, &pod, |operation| operation.pod_id == id).await;
    let mut subjects: Vec<Subject> = pod.subject().into_iter().collect();
    subjects.extend(containers.iter().filter_map(ContainerFacts::subject));
    subjects.extend(pod.being_created(&running.operations));
    let whole = pod.whole_cgroup.clone();
    let limits = gather(PATIENCE, move || match whole {
        Some(path) => cgroup::read(&path).map(|seen| cgroup::figures(&seen.counters)),
        None => Err("the client has set no cgroup parent of the pod; see its containers".to_owned()),
    });
    let pending: Vec<_> = containers.iter().filter_map(|container| logs::log(container, options)).collect();
    let record = common.description.as_ref().map(|seen| seen.record.clone()).unwrap_or_default();
    let changed = gather(PATIENCE, move || files::changed_at(&record));
    let is_ready = pod.status.state() == PodSandboxState::SandboxReady;
    let waits = is_ready && !containers.iter().any(is_running);
    let pulls = if waits { running.pulls.iter().map(summaries::pull).collect() } else { Vec::new() };
    let inspection = Inspection::collect(&common, &pod, subjects, &pulls, options);
    let since = match is_ready {
        true => pod.status.created_at,
        false => changed.wait().known().copied().unwrap_or(0),
    };
    let mut exits: Vec<_> = containers.iter().filter_map(ContainerFacts::exit).collect();
    exits.reverse();
    Ok(Page {
        kind: "pod",
        id: id.to_owned(),
        name: name_of(&pod),
        attempt: pod.status.metadata.as_ref().map_or(0, |metadata| metadata.attempt),
        state: ObjectState::of_pod(pod.status.state()).text().to_owned(),
        since: time(since),
        cgroup: pod.cgroup.clone(),
        containers: containers.iter().map(member).collect(),
        limits: limits.wait(),
        logs: pending.into_iter().map(PendingLog::wait).collect(),
        exits,
        ..inspection.page(common, options)
    })
}

fn is_running(container: &ContainerFacts) -> bool {
    container.status.state() == ContainerState::ContainerRunning
}

fn member(container: &ContainerFacts) -> Member {
    Member {
        id: container.status.id.clone(),
        name: container.name(),
        attempt: container.attempt(),
        state: ObjectState::of_container(container.status.state()).text(),
    }
}
