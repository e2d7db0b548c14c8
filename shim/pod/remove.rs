//! RemovePodSandbox: stops a running pod, removes its containers, then its folders and its name.

use std::sync::Arc;

use tonic::Status;

use crate::blocking::blocking;
use crate::container;
use crate::daemon::Shared;
use crate::error::CriError;
use crate::leftovers::{self, Leftover};
use crate::operation::{Key, Progress};
use crate::store::Level;
use crate::store::Pod;

/// Removes a pod with its containers. An unknown pod is a success.
///
/// # Errors
/// A part cannot be released or removed; a retry continues there.
pub async fn remove_pod_sandbox(daemon: &Shared, id: &str) -> Result<(), Status> {
    let pod = match daemon.store.pod(id) {
        Ok(pod) => pod,
        Err(CriError::NotFound { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    tracing::Span::current().record("pod", pod.id.as_str());
    let daemon = daemon.clone();
    let operations = daemon.operations.clone();
    operations
        .join(Key::RemovePod(pod.id.clone()), move |progress| async move {
            run_steps(&daemon, &pod, &progress).await.map(|()| String::new())
        })
        .await
        .map(drop)
}

async fn run_steps(daemon: &Shared, pod: &Arc<Pod>, progress: &Progress) -> Result<(), Status> {
    progress.step("stop");
    super::stop::stop_pod(daemon, pod).await?;
    progress.step("containers");
    for container in daemon.store.containers_of(&pod.id) {
        container::remove::remove_container(daemon, container.id.as_str()).await?;
    }
    progress.step("folders");
    let ended = pod.clone();
    blocking(move || {
        ended.stop_writing_record();
        Ok::<_, CriError>(())
    })
    .await?;
    for folder in [daemon.folders.pod_state(&pod.id), daemon.folders.pod(&pod.id)] {
        leftovers::remove(daemon, Leftover::Folder(folder)).await.map_err(CriError::from)?;
    }
    daemon.store.forget_pod(pod);
    daemon.events.pod(pod, Level::Deleted);
    Ok(())
}
