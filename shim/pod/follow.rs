//! Handles the events of a keeper: exits of containers, the exit of the pause, and the exit of the keeper itself.

use std::sync::Arc;
use std::time::Duration;

use berth_runtime::wire::{Call, Event, Snapshot};
use tracing::Instrument;

use crate::container::{exit, hooks, reconcile};
use crate::daemon::Shared;
use crate::error::CriError;
use crate::keeper::{KeeperClient, KeeperUpdate, KeeperUpdates};
use crate::pod::keeper::pause_of;
use crate::store::Level;
use crate::store::{Pod, PodState};

/// Follows a pod's keeper until its process ends, or until the pod is released.
pub fn follow(daemon: &Shared, pod: &Arc<Pod>, link: &KeeperClient, mut news: KeeperUpdates) {
    let (daemon, pod, process) = (daemon.clone(), pod.clone(), link.process());
    let span = tracing::info_span!(parent: None, "keeper", pod = pod.id.as_str());
    tokio::spawn(
        async move {
            while let Some(news) = news.recv().await {
                match news {
                    KeeperUpdate::Event(event) => handle(&daemon, &pod, event).await,
                    KeeperUpdate::Reconnected(snapshot) => take_over(&daemon, &pod, snapshot).await,
                }
            }
            // The channel closes when the process ends, or when the last holder of the link is dropped with its
            // released pod.
            if process.has_ended(Duration::ZERO) {
                keeper_ended(&daemon, &pod).await;
            }
            pod.set_reconciled(true);
        }
        .instrument(span),
    );
}

async fn handle(daemon: &Shared, pod: &Arc<Pod>, event: Event) {
    match event {
        Event::Exited { container, record } => match daemon.store.container(&container) {
            Ok(container) => exit::handle(daemon, &container, &record).await,
            Err(_) => tracing::debug!(container, "a container exited while it was being created or removed"),
        },
        Event::PoststopFailed { container, failure } => match daemon.store.container(&container) {
            Ok(container) => hooks::record_failure(&container, &failure).await,
            Err(_) => tracing::warn!(container, %failure, "a poststop hook has failed"),
        },
        Event::PauseExited { code } => pause_ended(daemon, pod, code),
        Event::ExecExited { exec, .. } => tracing::debug!(exec, "an exec exited that no caller waits for"),
        Event::Detached { client, .. } => {
            tracing::debug!(client, "a client detached that no caller waits for")
        }
    }
}

fn pause_ended(daemon: &Shared, pod: &Arc<Pod>, code: i32) {
    // If the pod is being created, the creation fails and undoes its steps.
    pod.set_lost();
    if matches!(pod.state(), PodState::Ready { .. }) {
        tracing::warn!(code, "the pause has exited: the pod is not ready");
    }
    pod.transition(PodState::pause_ended);
    // A former daemon may not have sent the event.
    if pod.state() == PodState::Lost {
        daemon.events.pod(pod, Level::Stopped);
    }
}

/// Takes over the state in the keeper's snapshot, after a connection was made.
async fn take_over(daemon: &Shared, pod: &Arc<Pod>, snapshot: Snapshot) {
    let Some(link) = pod.link() else { return };
    if snapshot.pause.is_none() && pod.state() != PodState::Creating {
        pause_ended(daemon, pod, 0);
    }
    if pod.netns().is_none()
        && let Err(error) = take_namespaces(pod, &link, &snapshot).await
    {
        tracing::error!(%error, "failed to take over the namespaces of the pod");
    }
    if pod.take_from_earlier_daemon() {
        reconcile::end_execs(daemon, pod, snapshot.execs.clone()).await;
    }
    reconcile::reconcile_pod(daemon, pod, &link, &snapshot).await;
    pod.set_reconciled(true);
}

async fn take_namespaces(pod: &Pod, link: &KeeperClient, snapshot: &Snapshot) -> Result<(), CriError> {
    if snapshot.pause.is_none() {
        return Ok(());
    }
    let (outcome, descriptors) = link.call(Call::Namespaces, Vec::new()).await?;
    let pause = pause_of(outcome, descriptors)?;
    pod.set_netns(Some(pause.netns));
    pod.set_userns(pause.userns);
    Ok(())
}

/// Handles the exit of the keeper: nothing monitors the pod any longer, so its processes are killed by their cgroups.
pub(crate) async fn keeper_ended(daemon: &Shared, pod: &Arc<Pod>) {
    pod.set_link(None);
    // If the pod is being created, the creation fails and undoes its steps.
    pod.set_lost();
    let needed_keeper = pod.state().needs_keeper();
    if needed_keeper {
        tracing::error!("the pod's keeper has exited; killing its containers");
        pod.transition(PodState::stopping);
    }
    for container in daemon.store.containers_of(&pod.id) {
        reconcile::end_without_keeper(daemon, &container).await;
    }
    if needed_keeper {
        daemon.events.pod(pod, Level::Stopped);
        if let Err(error) = super::stop::stop_pod(daemon, pod).await {
            tracing::error!(%error, "failed to release the resources of the pod");
        }
    }
}
