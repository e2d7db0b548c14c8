//! RemoveContainer: kills a running container, then removes its cgroup, writable layer and folder.

use std::sync::Arc;

use berth_runtime::plan::HookKind;
use berth_runtime::wire::{Call, Failure};
use tonic::Status;

use super::{exit, hooks};
use crate::blocking::blocking;
use crate::cgroups;
use crate::daemon::Shared;
use crate::error::CriError;
use crate::keeper::KeeperError;
use crate::leftovers::{self, Leftover};
use crate::operation::{Key, Progress};
use crate::store::{Container, ContainerState};

/// Removes a container. An unknown container is a success (CRI: "must be idempotent").
///
/// # Errors
/// A part cannot be removed; a retry continues there.
pub async fn remove_container(daemon: &Shared, id: &str) -> Result<(), Status> {
    let container = match daemon.store.container(id) {
        Ok(container) => container,
        Err(CriError::NotFound { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let span = tracing::Span::current();
    span.record("container", container.id.as_str());
    span.record("pod", container.pod.as_str());
    let daemon = daemon.clone();
    let operations = daemon.operations.clone();
    operations
        .join(Key::Remove(container.id.clone()), move |progress| async move {
            run_steps(&daemon, &container, &progress).await.map(|()| String::new()).map_err(Status::from)
        })
        .await
        .map(drop)
}

async fn run_steps(daemon: &Shared, container: &Arc<Container>, progress: &Progress) -> Result<(), CriError> {
    progress.step("end");
    if let ContainerState::Running { .. } = container.state() {
        exit::kill(daemon, container).await?;
    }
    // A container that the keeper has forgotten cannot be started. This also ends a start that waits for the keeper.
    forget(daemon, container).await?;
    progress.step("turn");
    let _turn = container.turn.write().await;
    forget(daemon, container).await?;
    progress.step("cgroup");
    cgroups::release(&daemon.hierarchies, container.with(|record| record.cgroup.clone())).await?;
    progress.step("writable layer");
    leftovers::remove(daemon, Leftover::Layer(container.id.clone())).await?;
    progress.step("folder");
    let ended = container.clone();
    blocking(move || {
        ended.stop_writing_record();
        Ok::<_, CriError>(())
    })
    .await?;
    leftovers::remove(daemon, Leftover::Folder(container.folder().to_owned())).await?;
    daemon.store.forget_container(container);
    daemon.events.container_deleted(container);
    Ok(())
}

/// Makes the keeper forget the container and kill a first process that has not started. If the keeper does not
/// answer, all processes in the container's cgroup are killed: a keeper that reconnects has only memory of it.
async fn forget(daemon: &Shared, container: &Arc<Container>) -> Result<(), CriError> {
    let Some(link) = daemon.store.pod(container.pod.as_str()).ok().and_then(|pod| pod.link()) else {
        return Ok(());
    };
    let more = hooks::longest(daemon, container, &[HookKind::Poststop]).await;
    let call = Call::Forget { container: container.id.as_str().to_owned() };
    match link.call_with(call, Vec::new(), more).await.map(drop) {
        Ok(()) | Err(KeeperError::Gone | KeeperError::Failure(Failure::NotFound { .. })) => Ok(()),
        Err(error) => {
            tracing::warn!(container = container.id.as_str(), %error, "the keeper failed to forget the container");
            exit::kill(daemon, container).await
        }
    }
}
