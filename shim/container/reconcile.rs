//! What the keeper of a pod knows of a container is taken over: when the daemon starts, and when a connection was made again.

use std::sync::Arc;
use std::time::Duration;

use berth_runtime::cgroup::{Cgroup, CgroupPath};
use berth_runtime::wire::{Call, ContainerSnapshot, ExitRecord, Snapshot};

use super::exit;
use crate::daemon::{Shared, blocking};
use crate::error::CriError;
use crate::keeper::KeeperClient;
use crate::store::{Container, ContainerState, KeeperReport, Pod, file};

/// How often a record is read again that the daemon lacks descriptors for, and after which time.
const AGAIN: u32 = 20;
const SHORTAGE: Duration = Duration::from_millis(250);

/// Takes over what a keeper knows of all containers of its pod.
pub(crate) async fn all_of(daemon: &Shared, pod: &Pod, link: &KeeperClient, snapshot: &Snapshot) {
    for container in daemon.store.containers_of(&pod.id) {
        let seen = snapshot.containers.iter().find(|seen| seen.id == container.id.as_str());
        one(daemon, &container, seen).await;
    }
    forget_unknown(daemon, pod, link, snapshot).await;
}

async fn one(daemon: &Shared, container: &Arc<Container>, seen: Option<&ContainerSnapshot>) {
    match container.state().compare(seen.map(|seen| &seen.phase)) {
        KeeperReport::Unchanged => {}
        KeeperReport::Running(started_at) => {
            container.transition(|state| state.started(started_at));
            daemon.events.container(daemon, container);
        }
        KeeperReport::Ended(record) => exit::take(daemon, container, &record).await,
        KeeperReport::Forgotten => {
            match last_word(container).await {
                Some(record) => exit::note(daemon, container, &record).await,
                None => exit::killed(daemon, container, "it was being removed"),
            }
            exit::kill_rest(daemon, container).await;
        }
    }
}

/// The container has no keeper any more: what it has left running is killed.
pub(crate) async fn ended_unseen(daemon: &Shared, container: &Arc<Container>) {
    note_end(daemon, container).await;
    exit::kill_rest(daemon, container).await;
}

/// The container has no keeper any more: the record that it has left is its last word.
pub(crate) async fn note_end(daemon: &Shared, container: &Arc<Container>) {
    if matches!(container.state(), ContainerState::Exited(_)) {
        return;
    }
    match last_word(container).await {
        Some(record) => exit::note(daemon, container, &record).await,
        None => exit::lost(daemon, container, "it ended with its keeper or with the host"),
    }
}

/// What the keeper has left of how the container ended. That the daemon lacks descriptors says nothing about the container.
async fn last_word(container: &Container) -> Option<ExitRecord> {
    for _again in 0..AGAIN {
        let path = container.folder().join("exit.json");
        let read = blocking(move || Ok::<_, CriError>(file::read::<ExitRecord>(&path))).await;
        match read {
            Ok(Ok(record)) => return Some(record),
            Ok(Err(error)) if error.is_shortage() => {
                tracing::warn!(container = container.id.as_str(), %error, "it is read again");
                tokio::time::sleep(SHORTAGE).await;
            }
            Ok(Err(_)) | Err(_) => return None,
        }
    }
    None
}

/// A keeper may hold a container whose record is gone, or that was being made by a daemon that has ended.
async fn forget_unknown(daemon: &Shared, pod: &Pod, link: &KeeperClient, snapshot: &Snapshot) {
    let making = pod.wait_for_creations(Duration::ZERO).await;
    for seen in &snapshot.containers {
        let is_made = making.iter().any(|id| id.as_str() == seen.id);
        if is_made || daemon.store.container(&seen.id).is_ok() {
            continue;
        }
        if let Err(error) = link.execute(Call::Forget { container: seen.id.clone() }).await {
            tracing::warn!(container = seen.id, %error, "failed to forget a container without a record");
        }
    }
}

/// Ends the execs of a former daemon: nobody waits for them, and their callers were told that it has gone. What an exec has
/// left running when it ended goes on.
pub(crate) async fn end_execs(daemon: &Shared, pod: &Pod, execs: Vec<String>) {
    for container in daemon.store.containers_of(&pod.id) {
        let recorded = container.with(|record| record.cgroup.clone());
        let (hierarchies, execs) = (daemon.clone(), execs.clone());
        let ended = blocking(move || -> Result<Vec<String>, CriError> {
            let path = CgroupPath::from_recorded(&recorded)?;
            Ok(Cgroup::open(&hierarchies.hierarchies, &path).end_execs(&execs)?)
        });
        match ended.await {
            Ok(left) => container.put_leftover_execs(left),
            Err(error) => {
                tracing::warn!(container = container.id.as_str(), %error, "failed to end the execs of a former daemon");
            }
        }
    }
}
