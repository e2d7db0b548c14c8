//! UpdateContainerResources: new limits of a container, whether it is created, running or over.

use std::sync::Arc;

use berth_proto::v1::{LinuxContainerResources, UpdateContainerResourcesRequest};
use berth_runtime::cgroup::{Cgroup, CgroupPath};
use oci_spec::runtime::LinuxResources;

use crate::daemon::{Daemon, Shared, blocking};
use crate::error::CriError;
use crate::spec::resources::{change, check, limits};
use crate::store::{Container, ContainerState};
use crate::systemd;

/// Changes limits; 0 and empty leave a limit as it is. What a process was started with (its `oom_score_adj`) stays, as
/// with other runtimes.
///
/// # Errors
/// The kernel refuses a limit, or its controller is not there: all limits are then as before.
pub async fn update(daemon: &Shared, request: UpdateContainerResourcesRequest) -> Result<(), CriError> {
    let container = daemon.store.container(&request.container_id)?;
    let span = tracing::Span::current();
    span.record("container", container.id.as_str());
    span.record("pod", container.pod.as_str());
    if request.windows.is_some() {
        return Err(CriError::invalid("windows", "is not for this host"));
    }
    let Some(asked) = request.linux else { return Ok(()) };
    check(&asked, daemon.hierarchies.is_v2())?;
    let turn = container.turn.clone().write_owned().await;
    daemon.store.container(container.id.as_str())?;
    let daemon = daemon.clone();
    if daemon.by_systemd() {
        let path = CgroupPath::from_recorded(&container.with(|record| record.cgroup.clone()))?;
        let (_, after) = changed(&container, &asked);
        systemd::set_limits(&daemon, &path, &limits(&after, daemon.hierarchies.is_v2())).await?;
    }
    // Not to be broken off by a caller that goes away: what blocks runs on to its end.
    blocking(move || {
        let _turn = turn;
        apply(&daemon, &container, &asked)
    })
    .await
}

fn apply(
    daemon: &Daemon,
    container: &Arc<Container>,
    asked: &LinuxContainerResources,
) -> Result<(), CriError> {
    let v2 = daemon.hierarchies.is_v2();
    let (before, after) = changed(container, asked);
    // A container that is over has no cgroup; what it would have had is told in its status.
    if !matches!(container.state(), ContainerState::Exited(_)) {
        let path = CgroupPath::from_recorded(&container.with(|record| record.cgroup.clone()))?;
        let cgroup = Cgroup::open(&daemon.hierarchies, &path);
        if let Err(error) = cgroup.update(&limits(&after, v2)) {
            restore(&cgroup, &limits(&before, v2));
            return Err(error.into());
        }
    }
    container.spec.change_limits(limits(&after, v2), &daemon.filters)?;
    container.intend(|record| {
        record.config.linux.get_or_insert_default().resources = Some(after.clone());
    })?;
    Ok(())
}

/// The limits before and after. Those that are not spoken of are set again with the others: what two of them say together,
/// such as a quota and its period, is one value to the kernel.
fn changed(
    container: &Container,
    asked: &LinuxContainerResources,
) -> (LinuxContainerResources, LinuxContainerResources) {
    let linux = container.with(|record| record.config.linux.clone()).unwrap_or_default();
    let before = linux.resources.unwrap_or_default();
    let mut after = before.clone();
    change(&mut after, asked);
    (before, after)
}

/// One limit was refused: those before it are taken back.
fn restore(cgroup: &Cgroup, before: &LinuxResources) {
    if let Err(error) = cgroup.update(before) {
        tracing::warn!(%error, "take new limits back");
    }
}
