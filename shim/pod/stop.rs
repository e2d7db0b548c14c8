//! StopPodSandbox: kills the containers, detaches the network, then ends keeper and pause, and with them the
//! namespaces.

use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_runtime::wire::Call;
use tonic::Status;
use tracing::Instrument;

use super::keeper;
use crate::blocking::blocking;
use crate::cgroups;
use crate::container::exit;
use crate::daemon::Shared;
use crate::error::CriError;
use crate::ids::ContainerId;
use crate::leftovers::{self, Leftover};
use crate::operation::{Key, Progress};
use crate::store::Level;
use crate::store::{Pod, PodState};

/// Stops a pod. A pod that is unknown or already stopped is a success (CRI: "must be idempotent").
///
/// # Errors
/// A resource of the pod cannot be released; a retry continues there.
pub async fn stop_pod_sandbox(daemon: &Shared, id: &str) -> Result<(), Status> {
    let pod = match daemon.store.pod(id) {
        Ok(pod) => pod,
        Err(CriError::NotFound { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    tracing::Span::current().record("pod", pod.id.as_str());
    stop_pod(daemon, &pod).await
}

/// Stops a known pod.
pub(crate) async fn stop_pod(daemon: &Shared, pod: &Arc<Pod>) -> Result<(), Status> {
    if pod.state() == (PodState::NotReady { released: true }) {
        return Ok(());
    }
    let (daemon, pod) = (daemon.clone(), pod.clone());
    let operations = daemon.operations.clone();
    operations
        .join(Key::StopPod(pod.id.clone()), move |progress| async move {
            run_steps(&daemon, &pod, &progress).await.map(|()| String::new()).map_err(Status::from)
        })
        .await
        .map(drop)
}

async fn run_steps(daemon: &Shared, pod: &Arc<Pod>, progress: &Progress) -> Result<(), CriError> {
    pod.transition(PodState::stopping);
    progress.step("containers that are being made");
    cancel_creations(pod).await?;
    progress.step("containers");
    kill_containers(daemon, pod).await?;
    daemon.events.pod(pod, Level::Stopped);
    progress.step("release");
    release(daemon, pod).await
}

/// The interval at which creations of containers are cancelled again: a creation may reach the keeper after the first
/// cancellation.
const CANCEL_INTERVAL: Duration = Duration::from_secs(1);

/// The time limit for a cancelled creation to end.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(30);

/// Cancels the creation of containers: none of them may run after this.
async fn cancel_creations(pod: &Pod) -> Result<(), CriError> {
    let until = Instant::now() + CANCEL_TIMEOUT;
    let mut making = pod.wait_for_creations(Duration::ZERO).await;
    while !making.is_empty() {
        if Instant::now() > until {
            let ids: Vec<_> = making.iter().map(ContainerId::as_str).collect();
            let what = format!(
                "failed to stop pod sandbox {}: containers are still being created: {}",
                pod.id,
                ids.join(", ")
            );
            return Err(CriError::deadline(what));
        }
        for container in making.iter().map(|id| id.as_str().to_owned()) {
            // A creation that has not reached the keeper finds that the pod is not ready.
            if let Some(link) = pod.link() {
                drop(link.execute(Call::Forget { container }).await);
            }
        }
        making = pod.wait_for_creations(CANCEL_INTERVAL).await;
    }
    Ok(())
}

/// Kills all containers of a pod in parallel.
async fn kill_containers(daemon: &Shared, pod: &Arc<Pod>) -> Result<(), CriError> {
    let mut tasks = tokio::task::JoinSet::new();
    for container in daemon.store.containers_of(&pod.id) {
        let daemon = daemon.clone();
        let kill = async move {
            exit::kill(&daemon, &container).await?;
            // The event of the pod follows those of its containers.
            daemon.events.container(&container);
            Ok::<_, CriError>(())
        };
        tasks.spawn(kill.in_current_span());
    }
    let mut errors = Vec::new();
    while let Some(done) = tasks.join_next().await {
        match done {
            Ok(Ok(())) => {}
            Ok(Err(error)) => errors.push(error),
            Err(panic) => errors.push(CriError::internal("kill a container", panic)),
        }
    }
    // Only the first error is returned; it names its container.
    errors.into_iter().next().map_or(Ok(()), Err)
}

/// Releases the resources of a pod without running containers: its addresses, its keeper and pause with the
/// namespaces, its cgroup. Continues after an error and reports all errors.
///
/// # Errors
/// The resources that could not be released.
pub async fn release(daemon: &Shared, pod: &Arc<Pod>) -> Result<(), CriError> {
    let mut errors = Vec::new();
    if !pod.host_network()
        && let Err(error) = leftovers::remove(daemon, Leftover::Attachment(pod.id.clone())).await
    {
        errors.push(format!("failed to detach the network: {error}"));
    }
    if let Some(link) = pod.link() {
        write_exits(daemon).await;
        match keeper::shut_down(&link).await {
            Ok(()) => pod.set_link(None),
            Err(error) => errors.push(error),
        }
    }
    pod.set_netns(None);
    pod.set_userns(None);
    if let Err(error) = cgroups::release(&daemon.hierarchies, pod.with(|record| record.cgroup.clone())).await
    {
        errors.push(format!("failed to remove the cgroup: {error}"));
    }
    if errors.is_empty() {
        pod.transition(PodState::released);
        return Ok(());
    }
    Err(CriError::internal(format!("stop pod sandbox {}", pod.id), errors.join("; ")))
}

/// The time limit for writing the exits of containers.
const LAST_WRITES: Duration = Duration::from_secs(1);

/// Writes the exits of containers to disk. Only the daemon and the keeper have them, so they are written before
/// the keeper ends, unless the disk hangs.
async fn write_exits(daemon: &Shared) {
    if daemon.records.pending() == 0 {
        return;
    }
    let records = daemon.records.clone();
    let written = blocking(move || Ok::<_, CriError>(records.flush(LAST_WRITES))).await;
    if !written.unwrap_or(false) {
        tracing::warn!("ending a keeper before all exits of its containers are on disk");
    }
}
