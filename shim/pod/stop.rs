//! StopPodSandbox: containers are killed, the address is given back, then the namespaces die with their last process.

use std::os::fd::AsFd;
use std::sync::Arc;

use berth_runtime::cgroup::{Cgroup, CgroupPath};
use tonic::Status;

use super::keeper;
use crate::container::exit;
use crate::daemon::{Shared, blocking};
use crate::error::CriError;
use crate::event::Level;
use crate::operation::{Key, Progress};
use crate::store::{Pod, PodState};

/// Stops a pod. One that is unknown or stopped already is a success (CRI: "must be idempotent").
///
/// # Errors
/// Something the pod holds cannot be released; a retry goes on there.
pub async fn stop(daemon: &Shared, id: &str) -> Result<(), Status> {
    let pod = match daemon.store.pod(id) {
        Ok(pod) => pod,
        Err(CriError::NotFound { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    tracing::Span::current().record("pod", pod.id.as_str());
    stop_pod(daemon, &pod).await
}

/// Stops a pod that is known.
pub(crate) async fn stop_pod(daemon: &Shared, pod: &Arc<Pod>) -> Result<(), Status> {
    if pod.state() == (PodState::NotReady { released: true }) {
        return Ok(());
    }
    let (daemon, pod) = (daemon.clone(), pod.clone());
    let operations = daemon.operations.clone();
    operations
        .join(Key::StopPod(pod.id.clone()), move |progress| async move {
            steps(&daemon, &pod, &progress).await.map(|()| String::new()).map_err(Status::from)
        })
        .await
        .map(drop)
}

async fn steps(daemon: &Shared, pod: &Arc<Pod>, progress: &Progress) -> Result<(), CriError> {
    progress.step("record");
    pod.change(PodState::stopping)?;
    progress.step("containers");
    for container in daemon.store.containers_of(&pod.id) {
        exit::kill(daemon, &container).await?;
        // The end of a pod is told after those of its containers.
        daemon.events.container(daemon, &container);
    }
    daemon.events.pod(daemon, pod, Level::Stopped);
    progress.step("release");
    release(daemon, pod).await
}

/// Gives back everything that a pod without running containers holds: its addresses, its keeper and pause with the
/// namespaces, its cgroup. Goes on after an error and reports all (DESIGN rule 10).
///
/// # Errors
/// What could not be released.
pub async fn release(daemon: &Shared, pod: &Arc<Pod>) -> Result<(), CriError> {
    let mut errors = Vec::new();
    if !pod.host_network() {
        let netns = pod.netns();
        if let Err(error) = daemon.network.del(pod.id.as_str(), netns.as_ref().map(AsFd::as_fd)).await {
            errors.push(format!("detach the network: {error}"));
        }
    }
    if let Err(error) = keeper::end(daemon, &pod.id, pod.link().as_ref()).await {
        errors.push(format!("end the keeper: {error}"));
    }
    pod.set_link(None);
    pod.set_netns(None);
    pod.set_userns(None);
    if let Err(error) = release_cgroup(daemon, pod.with(|record| record.cgroup.clone())).await {
        errors.push(format!("remove the cgroup: {error}"));
    }
    if errors.is_empty() {
        pod.change(PodState::released)?;
        return Ok(());
    }
    Err(CriError::internal(format!("stop pod sandbox {}", pod.id), errors.join("; ")))
}

/// Kills what is in a cgroup and removes it.
///
/// # Errors
/// It cannot be emptied or removed.
pub async fn release_cgroup(daemon: &Shared, recorded: String) -> Result<(), CriError> {
    let daemon = daemon.clone();
    blocking(move || {
        let path = CgroupPath::from_recorded(&recorded)?;
        Cgroup::open(&daemon.hierarchies, &path).release()
    })
    .await
}
