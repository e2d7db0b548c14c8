//! Takes over the state of containers from the keeper: when the daemon starts, and after a reconnect.

use std::sync::Arc;
use std::time::Duration;

use berth_runtime::wire::{Call, ContainerSnapshot, ExitRecord, Snapshot};

use super::{exit, hooks};
use crate::blocking::blocking;
use crate::cgroups::Cgroups;
use crate::error::CriError;
use crate::keeper::KeeperClient;
use crate::pods::Pods;
use crate::store::{Container, ContainerState, KeeperReport, Pod, Store, file};

/// The number of attempts to read a record while the daemon lacks descriptors, and the delay between them.
const ATTEMPTS: u32 = 20;
const RETRY_DELAY: Duration = Duration::from_millis(250);

/// Takes over the keeper's state of all containers of its pod.
pub(crate) async fn reconcile_pod(
    pods: &Pods,
    cgroups: &Cgroups,
    pod: &Pod,
    link: &KeeperClient,
    snapshot: &Snapshot,
) {
    for container in pods.store.containers_of(&pod.id) {
        let seen = snapshot.containers.iter().find(|seen| seen.id == container.id.as_str());
        reconcile_container(pods, cgroups, &container, seen).await;
    }
    forget_unknown(&pods.store, pod, link, snapshot).await;
}

async fn reconcile_container(
    pods: &Pods,
    cgroups: &Cgroups,
    container: &Arc<Container>,
    seen: Option<&ContainerSnapshot>,
) {
    take_state(pods, cgroups, container, seen).await;
    if let Some(failure) = seen.and_then(|seen| seen.poststop_failure.as_ref()) {
        hooks::record_failure(container, failure).await;
    }
}

async fn take_state(
    pods: &Pods,
    cgroups: &Cgroups,
    container: &Arc<Container>,
    seen: Option<&ContainerSnapshot>,
) {
    match container.state().compare(seen.map(|seen| &seen.phase)) {
        KeeperReport::Unchanged => {}
        KeeperReport::Running(started_at) => {
            // The pid differs from that of the first process if a checkpoint was restored.
            container.transition(|state| state.started(started_at).with_pid(seen.map(|seen| seen.pid)));
            pods.events.container(container);
        }
        KeeperReport::Ended(record) => exit::handle(pods, cgroups, container, &record).await,
        KeeperReport::Forgotten => {
            match read_exit_record(container).await {
                Some(record) => exit::record_exit(pods, container, &record).await,
                None => exit::record_kill(&pods.events, container, "it was being removed"),
            }
            exit::kill_rest(cgroups, container).await;
        }
    }
}

/// Records the exit of a container without a keeper, and kills its remaining processes.
pub(crate) async fn end_without_keeper(pods: &Pods, cgroups: &Cgroups, container: &Arc<Container>) {
    let recorded = record_end_without_keeper(pods, container).await;
    exit::kill_rest(cgroups, container).await;
    if recorded == EndRecord::Missing {
        hooks::run_poststop(container).await;
    }
}

/// Whether a keeper that has ended left an exit record of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndRecord {
    /// It did, or the end was known before: the keeper has run the `poststop` hooks.
    Left,
    /// It did not: the container ended with it or after it.
    Missing,
}

/// Records the exit of a container without a keeper, from the exit record that the keeper has left.
pub(crate) async fn record_end_without_keeper(pods: &Pods, container: &Arc<Container>) -> EndRecord {
    if matches!(container.state(), ContainerState::Exited(_)) {
        return EndRecord::Left;
    }
    match read_exit_record(container).await {
        Some(record) => {
            exit::record_exit(pods, container, &record).await;
            EndRecord::Left
        }
        None => {
            exit::record_unknown_exit(&pods.events, container, "it ended with its keeper or with the host");
            EndRecord::Missing
        }
    }
}

/// Reads the exit record that the keeper wrote. A lack of descriptors does not mean that the record is missing: the
/// read is repeated.
async fn read_exit_record(container: &Container) -> Option<ExitRecord> {
    for _attempt in 0..ATTEMPTS {
        let path = container.folder().join("exit.json");
        let read = blocking(move || Ok::<_, CriError>(file::read::<ExitRecord>(&path))).await;
        match read {
            Ok(Ok(record)) => return Some(record),
            Ok(Err(error)) if error.is_shortage() => {
                tracing::warn!(container = container.id.as_str(), %error, "failed to read an exit record; retrying");
                tokio::time::sleep(RETRY_DELAY).await;
            }
            Ok(Err(_)) | Err(_) => return None,
        }
    }
    None
}

/// Makes the keeper forget containers without a record, and those that a former daemon was creating.
async fn forget_unknown(store: &Store, pod: &Pod, link: &KeeperClient, snapshot: &Snapshot) {
    let making = pod.wait_for_creations(Duration::ZERO).await;
    for seen in &snapshot.containers {
        let is_being_created = making.iter().any(|id| id.as_str() == seen.id);
        if is_being_created || store.container(&seen.id).is_ok() {
            continue;
        }
        if let Err(error) = link.execute(Call::Forget { container: seen.id.clone() }).await {
            tracing::warn!(container = seen.id, %error, "failed to forget a container without a record");
        }
    }
}

/// Ends the execs of a former daemon: their callers lost the connection and no caller waits for them. Processes that
/// an exec left running when it ended continue to run.
pub(crate) async fn end_execs(store: &Store, cgroups: &Cgroups, pod: &Pod, execs: Vec<String>) {
    for container in store.containers_of(&pod.id) {
        let recorded = container.with(|record| record.cgroup.clone());
        let (cgroups, execs) = (cgroups.clone(), execs.clone());
        let ended = blocking(move || -> Result<Vec<String>, CriError> {
            Ok(cgroups.recorded(&recorded)?.end_execs(&execs)?)
        });
        match ended.await {
            Ok(left) => container.put_leftover_execs(left),
            Err(error) => {
                tracing::warn!(container = container.id.as_str(), %error, "failed to end the execs of a former daemon");
            }
        }
    }
}
