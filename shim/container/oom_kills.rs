//! Reports processes of containers that the kernel kills for lack of memory: as an event of the node, in the metrics and in
//! the log. If such a kill does not end the container, neither its status nor GetContainerEvents shows it.
//!
//! The kernel notifies the daemon ([`berth_runtime::cgroup::OomWatcher`]). Kills are counted by cgroup; a container stores
//! the number that was reported.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use berth_runtime::cgroup::{Cgroup, OomWatcher};
use tokio::io::unix::AsyncFd;

use crate::blocking::blocking;
use crate::cgroups::Cgroups;
use crate::error::CriError;
use crate::pods::Pods;
use crate::store::{Container, ContainerState};

/// The shortest time between two reads of counters. On cgroup v2 a container at its limit causes up to 100 notifications a
/// second without a kill; on v1 the counter increases shortly after the notification.
const INTERVAL: Duration = Duration::from_millis(250);

/// Watches a new container in the background. The store must have it: notifications about other containers end the watch.
/// Without the watch the container works; its exit reports a kill of its first process.
pub fn watch(cgroups: Cgroups, container: Arc<Container>) {
    tokio::task::spawn_blocking(move || drop(watch_now(&cgroups, &container)));
}

/// Watches the cgroup of a container, and returns it.
fn watch_now(cgroups: &Cgroups, container: &Container) -> Option<Cgroup> {
    let id = container.id.as_str();
    let cgroup = container.with(|record| cgroups.recorded(&record.cgroup)).ok()?;
    match cgroups.oom_watcher().watch(&cgroup, id) {
        Ok(()) => return Some(cgroup),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            tracing::debug!(container = id, "the container has no cgroup")
        }
        Err(error) => tracing::warn!(container = id, %error, "failed to watch a container for OOM kills"),
    }
    None
}

/// Watches the containers that an earlier daemon has started, then reports all kills from now on.
///
/// # Errors
/// The watcher cannot be registered with tokio.
pub async fn follow(pods: Arc<Pods>, cgroups: Cgroups) -> Result<(), CriError> {
    let containers = pods.store.containers();
    let watching = cgroups.clone();
    blocking(move || {
        for container in containers.iter().filter(|container| !has_ended(container)) {
            // Earlier kills are not reported again.
            if let Some(cgroup) = watch_now(&watching, container) {
                container.oom_kills.fetch_max(cgroup.oom_kills(), Ordering::Relaxed);
            }
        }
        Ok::<_, CriError>(())
    })
    .await?;
    let watcher = register(cgroups.oom_watcher().clone())
        .map_err(|error| CriError::internal("watch cgroups for OOM kills", error))?;
    tokio::spawn(async move {
        while let Ok(mut ready) = watcher.readable().await {
            let notified = watcher.get_ref().notified();
            ready.clear_ready();
            if notified.is_empty() {
                continue;
            }
            report_all(&pods, &cgroups, &notified).await;
            tokio::time::sleep(INTERVAL).await;
            if !cgroups.is_v2() {
                report_all(&pods, &cgroups, &notified).await;
            }
        }
    });
    Ok(())
}

/// Registers the watcher, which owns one descriptor for its whole life.
#[expect(
    deprecated,
    reason = "its replacement is unsafe: it also accepts types that give their descriptor away"
)]
fn register(watcher: Arc<OomWatcher>) -> std::io::Result<AsyncFd<Arc<OomWatcher>>> {
    AsyncFd::new(watcher)
}

fn has_ended(container: &Container) -> bool {
    matches!(container.state(), ContainerState::Exited(_))
}

async fn report_all(pods: &Pods, cgroups: &Cgroups, ids: &[String]) {
    for id in ids {
        match pods.store.container(id) {
            Ok(container) => report(pods, cgroups, &container).await,
            Err(_) => cgroups.oom_watcher().forget(id),
        }
    }
}

/// Reports the kills of a container that were not reported yet.
pub async fn report(pods: &Pods, cgroups: &Cgroups, container: &Container) {
    let recorded = container.with(|record| record.cgroup.clone());
    let reading = cgroups.clone();
    let counted = blocking(move || Ok::<_, CriError>(reading.recorded(&recorded)?.counted_oom_kills())).await;
    match counted {
        Ok(Some(kills)) => report_up_to(pods, container, kills),
        // The cgroup was removed.
        Ok(None) => cgroups.oom_watcher().forget(container.id.as_str()),
        Err(error) => tracing::debug!(container = container.id.as_str(), %error, "failed to count OOM kills"),
    }
}

/// Reports kills up to this number of the container.
pub(super) fn report_up_to(pods: &Pods, container: &Container, kills: u64) {
    let reported = container.oom_kills.fetch_max(kills, Ordering::Relaxed);
    let Some(new) = kills.checked_sub(reported).filter(|new| *new > 0) else { return };
    tracing::info!(
        pod = container.pod.as_str(),
        container = container.id.as_str(),
        kills = new,
        "the kernel killed processes for lack of memory"
    );
    pods.instruments.oom_kills(new);
    pods.events.oom_kills(container, new);
}
