//! RemovePodSandbox: stops a running pod, removes its containers, then its folders and its name.

use std::sync::Arc;

use tonic::Status;

use super::stopper::PodStopper;
use crate::blocking::blocking;
use crate::container;
use crate::daemon::{Daemon, Shared};
use crate::error::CriError;
use crate::leftovers::{self, Leftover};
use crate::log_folders;
use crate::nri::events::Notice;
use crate::operation::{OperationKey, Progress, RemovePodStep};
use crate::store::Level;
use crate::store::Pod;

/// Removes a pod with its containers. An unknown pod is a success.
///
/// # Errors
/// A part cannot be released or removed; a retry continues there.
pub async fn remove_pod_sandbox(daemon: &Shared, id: &str) -> Result<(), Status> {
    let pod = match daemon.pods.store.pod(id) {
        Ok(pod) => pod,
        Err(CriError::NotFound { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    tracing::Span::current().record("pod", pod.id.as_str());
    let daemon = daemon.clone();
    let operations = daemon.pods.operations.clone();
    operations
        .join(OperationKey::RemovePod(pod.id.clone()), move |progress| async move {
            run_steps(&daemon, &pod, &progress).await.map(|()| String::new())
        })
        .await
        .map(drop)
}

async fn run_steps(daemon: &Shared, pod: &Arc<Pod>, progress: &Progress) -> Result<(), Status> {
    progress.step(RemovePodStep::Stop);
    PodStopper::of(daemon).stop(pod).await?;
    progress.step(RemovePodStep::Containers);
    let Daemon { pods, cgroups, images, .. } = &**daemon;
    for container in pods.store.containers_of(&pod.id) {
        container::remove::remove_container(pods, cgroups, images, container.id.as_str()).await?;
    }
    progress.step(RemovePodStep::Folders);
    let (ended, folders) = (pod.clone(), pods.folders.clone());
    blocking(move || {
        ended.stop_writing_record();
        log_folders::release(&folders, &ended.id);
        Ok::<_, CriError>(())
    })
    .await?;
    for folder in [pods.folders.pod_state(&pod.id), pods.folders.pod(&pod.id)] {
        leftovers::remove(Leftover::Folder(folder)).await.map_err(CriError::from)?;
    }
    pods.store.forget_pod(pod);
    pods.events.pod(pod, Level::Deleted);
    progress.step(RemovePodStep::Plugins);
    pods.nri.pod(Notice::RemovePod, pod).await;
    Ok(())
}
