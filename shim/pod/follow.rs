//! What a keeper tells unasked: containers that end, a pause that ends, and the end of the keeper itself.

use std::sync::Arc;
use std::time::Duration;

use berth_runtime::wire::{Call, Event, Snapshot};
use tracing::Instrument;

use crate::container::{exit, reconcile};
use crate::daemon::Shared;
use crate::error::CriError;
use crate::event::Level;
use crate::keeper::{KeeperClient, KeeperUpdate, KeeperUpdates};
use crate::pod::keeper::pause_of;
use crate::store::{Pod, PodState};

/// Follows a pod's keeper until its process ends, or until its pod is released.
pub fn follow(daemon: &Shared, pod: &Arc<Pod>, link: &KeeperClient, mut news: KeeperUpdates) {
    let (daemon, pod, process) = (daemon.clone(), pod.clone(), link.process());
    let span = tracing::info_span!(parent: None, "keeper", pod = pod.id.as_str());
    tokio::spawn(
        async move {
            while let Some(news) = news.recv().await {
                match news {
                    KeeperUpdate::Event(event) => take(&daemon, &pod, event).await,
                    KeeperUpdate::Reconnected(snapshot) => take_over(&daemon, &pod, snapshot).await,
                }
            }
            // The news end with the process, or with the last holder of the link, whose pod is released.
            if process.has_ended(Duration::ZERO) {
                keeper_ended(&daemon, &pod).await;
            }
            pod.set_reconciled(true);
        }
        .instrument(span),
    );
}

async fn take(daemon: &Shared, pod: &Arc<Pod>, event: Event) {
    match event {
        Event::Exited { container, record } => match daemon.store.container(&container) {
            Ok(container) => exit::take(daemon, &container, &record).await,
            Err(_) => tracing::debug!(container, "a container that is being made or removed has ended"),
        },
        Event::PauseExited { code } => pause_ended(daemon, pod, code),
        Event::ExecExited { exec, .. } => tracing::debug!(exec, "nobody waits for the end of this exec"),
        Event::Detached { client, .. } => tracing::debug!(client, "nobody waits for the end of this client"),
    }
}

fn pause_ended(daemon: &Shared, pod: &Arc<Pod>, code: i32) {
    // Whoever is making it takes everything back.
    pod.set_lost();
    if matches!(pod.state(), PodState::Ready { .. }) {
        tracing::warn!(code, "the pause has ended: the pod is not ready");
    }
    pod.transition(PodState::pause_ended);
    // That may not have been told by a former daemon.
    if pod.state() == PodState::Lost {
        daemon.events.pod(daemon, pod, Level::Stopped);
    }
}

/// Takes over what the keeper knows, after a connection was made.
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
    reconcile::all_of(daemon, pod, &link, &snapshot).await;
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

/// Without its keeper nothing of a pod is looked after: what still runs is killed, by its cgroups.
pub(crate) async fn keeper_ended(daemon: &Shared, pod: &Arc<Pod>) {
    pod.set_link(None);
    // Whoever is making it takes everything back.
    pod.set_lost();
    let was_up = pod.state().needs_keeper();
    if was_up {
        tracing::error!("the pod's keeper has ended: its containers are killed");
        pod.transition(PodState::stopping);
    }
    for container in daemon.store.containers_of(&pod.id) {
        reconcile::ended_unseen(daemon, &container).await;
    }
    if was_up {
        daemon.events.pod(daemon, pod, Level::Stopped);
        if let Err(error) = super::stop::stop_pod(daemon, pod).await {
            tracing::error!(%error, "failed to release what the pod held");
        }
    }
}
