//! RemoveContainer: kills a running container, then removes its cgroup, writable layer and folder.

use std::sync::Arc;

use berth_image::ImageStore;
use berth_runtime::plan::HookKind;
use berth_runtime::wire::{Call, Failure};
use tonic::Status;

use super::{exit, hooks};
use crate::blocking::blocking;
use crate::cgroups::Cgroups;
use crate::error::CriError;
use crate::handlers;
use crate::keeper::KeeperError;
use crate::leftovers::{self, Leftover};
use crate::operation::{OperationKey, Progress, RemoveStep};
use crate::pods::Pods;
use crate::store::{Container, ContainerState};

/// Removes a container. An unknown container is a success (CRI: "must be idempotent").
///
/// # Errors
/// A part cannot be removed; a retry continues there.
pub async fn remove_container(
    pods: &Arc<Pods>,
    cgroups: &Cgroups,
    images: &ImageStore,
    id: &str,
) -> Result<(), Status> {
    let container = match pods.store.container(id) {
        Ok(container) => container,
        Err(CriError::NotFound { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let span = tracing::Span::current();
    span.record("container", container.id.as_str());
    span.record("pod", container.pod.as_str());
    let (removing, cgroups, images) = (pods.clone(), cgroups.clone(), images.clone());
    pods.operations
        .join(OperationKey::Remove(container.id.clone()), move |progress| async move {
            run_steps(&removing, &cgroups, images, &container, &progress)
                .await
                .map(|()| String::new())
                .map_err(Status::from)
        })
        .await
        .map(drop)
}

async fn run_steps(
    pods: &Pods,
    cgroups: &Cgroups,
    images: ImageStore,
    container: &Arc<Container>,
    progress: &Progress,
) -> Result<(), CriError> {
    progress.step(RemoveStep::End);
    if let ContainerState::Running { .. } = container.state() {
        exit::kill(pods, cgroups, container).await?;
    }
    // A container that the keeper has forgotten cannot be started. This also ends a start that waits for the keeper.
    forget(pods, cgroups, container).await?;
    progress.step(RemoveStep::Plugins);
    pods.nri.stopped(container).await;
    let removal = pods.nri.prepare_removal(container).await;
    progress.step(RemoveStep::Turn);
    let _turn = container.turn.write().await;
    forget(pods, cgroups, container).await?;
    if let Some(runtime) = container.runtime() {
        progress.step(RemoveStep::Runtime);
        let more = hooks::longest(container, &[HookKind::Poststop]).await;
        handlers::calls::delete(&runtime, &container.id, more).await?;
    }
    progress.step(RemoveStep::Cgroup);
    cgroups.release(container.with(|record| record.cgroup.clone())).await?;
    progress.step(RemoveStep::Layer);
    leftovers::remove(Leftover::Layer { images, container: container.id.clone() }).await?;
    progress.step(RemoveStep::Folder);
    let ended = container.clone();
    blocking(move || {
        ended.stop_writing_record();
        Ok::<_, CriError>(())
    })
    .await?;
    leftovers::remove(Leftover::Folder(container.folder().to_owned())).await?;
    pods.store.forget_container(container);
    pods.events.container_deleted(container);
    progress.step(RemoveStep::Removed);
    pods.nri.removed(removal).await;
    Ok(())
}

/// Makes the keeper forget the container and kill a first process that has not started. If the keeper does not
/// answer, all processes in the container's cgroup are killed: a keeper that reconnects has only memory of it.
async fn forget(pods: &Pods, cgroups: &Cgroups, container: &Arc<Container>) -> Result<(), CriError> {
    let Ok(Some(link)) = pods.keeper_of(container) else {
        return Ok(());
    };
    let more = hooks::longest(container, &[HookKind::Poststop]).await;
    let call = Call::Forget { container: container.id.as_str().to_owned() };
    match link.call_with(call, Vec::new(), more).await.map(drop) {
        Ok(()) | Err(KeeperError::Gone | KeeperError::Failure(Failure::NotFound { .. })) => Ok(()),
        Err(error) => {
            tracing::warn!(container = container.id.as_str(), %error, "the keeper failed to forget the container");
            exit::kill(pods, cgroups, container).await
        }
    }
}
