//! StopPodSandbox: containers are killed, the address is given back, then the namespaces die with their last process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_runtime::cgroup::{Cgroup, CgroupPath};
use berth_runtime::wire::Call;
use tonic::Status;
use tracing::Instrument;

use super::keeper;
use crate::container::exit;
use crate::daemon::{Shared, blocking};
use crate::error::CriError;
use crate::event::Level;
use crate::ids::ContainerId;
use crate::leftovers::{self, Leftover};
use crate::operation::{Key, Progress};
use crate::store::{Pod, PodState};
use crate::systemd;

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
    pod.transition(PodState::stopping);
    progress.step("containers that are being made");
    give_up_making(pod).await?;
    progress.step("containers");
    kill_containers(daemon, pod).await?;
    daemon.events.pod(daemon, pod, Level::Stopped);
    progress.step("release");
    release(daemon, pod).await
}

/// How often containers that are being made are given up, until they are: one may come to its keeper after that was told.
const AGAIN: Duration = Duration::from_secs(1);

/// How long a container may be in the making once it is given up.
const GIVEN_UP: Duration = Duration::from_secs(30);

/// Ends the making of containers: nothing of it may come to run after this.
async fn give_up_making(pod: &Pod) -> Result<(), CriError> {
    let until = Instant::now() + GIVEN_UP;
    let mut making = pod.wait_for_creations(Duration::ZERO).await;
    while !making.is_empty() {
        if Instant::now() > until {
            let ids: Vec<_> = making.iter().map(ContainerId::as_str).collect();
            let what =
                format!("stop pod sandbox {}: containers are still being made: {}", pod.id, ids.join(", "));
            return Err(CriError::deadline(what));
        }
        for container in making.iter().map(|id| id.as_str().to_owned()) {
            // One that the keeper does not know yet will find that the pod is not ready.
            if let Some(link) = pod.link() {
                drop(link.execute(Call::Forget { container }).await);
            }
        }
        making = pod.wait_for_creations(AGAIN).await;
    }
    Ok(())
}

/// All at once: the slowest decides how long it takes.
async fn kill_containers(daemon: &Shared, pod: &Arc<Pod>) -> Result<(), CriError> {
    let mut tasks = tokio::task::JoinSet::new();
    for container in daemon.store.containers_of(&pod.id) {
        let daemon = daemon.clone();
        let kill = async move {
            exit::kill(&daemon, &container).await?;
            // The end of a pod is told after those of its containers.
            daemon.events.container(&daemon, &container);
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
    // The first stands for all: each names its container.
    errors.into_iter().next().map_or(Ok(()), Err)
}

/// Gives back everything that a pod without running containers holds: its addresses, its keeper and pause with the
/// namespaces, its cgroup. Goes on after an error and reports all.
///
/// # Errors
/// What could not be released.
pub async fn release(daemon: &Shared, pod: &Arc<Pod>) -> Result<(), CriError> {
    let mut errors = Vec::new();
    if !pod.host_network()
        && let Err(error) = leftovers::remove(daemon, Leftover::Attachment(pod.id.clone())).await
    {
        errors.push(format!("detach the network: {error}"));
    }
    if let Some(link) = pod.link() {
        write_ends(daemon).await;
        match keeper::end(&link).await {
            Ok(()) => pod.set_link(None),
            Err(error) => errors.push(error),
        }
    }
    pod.set_netns(None);
    pod.set_userns(None);
    if let Err(error) = release_cgroup(daemon, pod.with(|record| record.cgroup.clone())).await {
        errors.push(format!("remove the cgroup: {error}"));
    }
    if errors.is_empty() {
        pod.transition(PodState::released);
        return Ok(());
    }
    Err(CriError::internal(format!("stop pod sandbox {}", pod.id), errors.join("; ")))
}

/// Kills what is in the cgroups of an object whose record is gone, wherever they are, and removes them: its id is the name.
///
/// # Errors
/// As [`release_cgroup`].
pub async fn release_cgroups_of(daemon: &Shared, id: &str) -> Result<(), CriError> {
    let names = [id.to_owned(), systemd::scope_name(id)];
    let daemon = daemon.clone();
    blocking(move || {
        let found = berth_runtime::cgroup::find(&daemon.hierarchies, &names);
        found.iter().try_for_each(|path| Cgroup::open(&daemon.hierarchies, path).release())
    })
    .await
}

/// How long the disk may take for what is known of ended containers.
const LAST_WRITES: Duration = Duration::from_secs(1);

/// The keeper is the last beside the daemon who knows how its containers have ended: that is to be on the disk before it
/// ends, unless the disk does not take it.
async fn write_ends(daemon: &Shared) {
    if daemon.records.pending() == 0 {
        return;
    }
    let records = daemon.records.clone();
    let written = blocking(move || Ok::<_, CriError>(records.flush(LAST_WRITES))).await;
    if !written.unwrap_or(false) {
        tracing::warn!("a keeper ends before all that it knows is written");
    }
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
