//! Handles the events of a keeper: exits of containers, the exit of the pause, and the exit of the keeper itself.

use std::sync::Arc;
use std::time::Duration;

use berth_runtime::wire::{Call, Event, Snapshot};
use tracing::Instrument;

use crate::container::{exit, hooks, reconcile};
use crate::error::CriError;
use crate::event::Events;
use crate::keeper::{KeeperClient, KeeperUpdate, KeeperUpdates};
use crate::pod::keeper::pause_of;
use crate::pod::stopper::PodStopper;
use crate::store::Level;
use crate::store::{Pod, PodState};

/// Follows a pod's keeper until its process ends, or until the pod is released.
pub fn start(stopper: &PodStopper, pod: &Arc<Pod>, link: &KeeperClient, mut news: KeeperUpdates) {
    let (stopper, pod, process) = (stopper.clone(), pod.clone(), link.process());
    let span = tracing::info_span!(parent: None, "keeper", pod = pod.id.as_str());
    tokio::spawn(
        async move {
            while let Some(news) = news.recv().await {
                match news {
                    KeeperUpdate::Event(event) => handle(&stopper, &pod, event).await,
                    KeeperUpdate::Reconnected(snapshot) => take_over(&stopper, &pod, snapshot).await,
                }
            }
            // The channel closes when the process ends, or when the last holder of the link is dropped with its
            // released pod.
            if process.has_ended(Duration::ZERO) {
                keeper_ended(&stopper, &pod).await;
            }
            pod.set_reconciled(true);
        }
        .instrument(span),
    );
}

async fn handle(stopper: &PodStopper, pod: &Arc<Pod>, event: Event) {
    match event {
        Event::Exited { container, record } => match stopper.pods.store.container(&container) {
            Ok(container) => exit::handle(&stopper.pods, &stopper.cgroups, &container, &record).await,
            Err(_) => tracing::debug!(container, "a container exited while it was being created or removed"),
        },
        Event::PoststopFailed { container, failure } => match stopper.pods.store.container(&container) {
            Ok(container) => hooks::record_failure(&container, &failure).await,
            Err(_) => tracing::warn!(container, %failure, "failed to run a poststop hook"),
        },
        Event::PauseExited { code } => pause_ended(&stopper.pods.events, pod, code),
        Event::ExecExited { exec, .. } => tracing::debug!(exec, "an exec exited that no caller waits for"),
        Event::Detached { client, .. } => {
            tracing::debug!(client, "a client detached that no caller waits for")
        }
    }
}

fn pause_ended(events: &Events, pod: &Arc<Pod>, code: i32) {
    // If the pod is being created, the creation fails and undoes its steps.
    pod.set_lost();
    if matches!(pod.state(), PodState::Ready { .. }) {
        tracing::warn!(code, "the pause has exited: the pod is not ready");
    }
    pod.transition(PodState::pause_ended);
    // A former daemon may not have sent the event.
    if pod.state() == PodState::Lost {
        events.pod(pod, Level::Stopped);
    }
}

/// Takes over the state in the keeper's snapshot, after a connection was made.
async fn take_over(stopper: &PodStopper, pod: &Arc<Pod>, snapshot: Snapshot) {
    let PodStopper { pods, cgroups, .. } = stopper;
    let Some(link) = pod.link() else { return };
    if snapshot.pause.is_none() && pod.state() != PodState::Creating {
        pause_ended(&pods.events, pod, 0);
    }
    if pod.netns().is_none()
        && let Err(error) = take_namespaces(pod, &link, &snapshot).await
    {
        tracing::error!(%error, "failed to take over the namespaces of the pod");
    }
    if pod.take_from_earlier_daemon() {
        reconcile::end_execs(&pods.store, cgroups, pod, snapshot.execs.clone()).await;
    }
    reconcile::reconcile_pod(pods, cgroups, pod, &link, &snapshot).await;
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
async fn keeper_ended(stopper: &PodStopper, pod: &Arc<Pod>) {
    let PodStopper { pods, cgroups, .. } = stopper;
    pod.set_link(None);
    // If the pod is being created, the creation fails and undoes its steps.
    pod.set_lost();
    let needed_keeper = pod.state().needs_keeper();
    if needed_keeper {
        tracing::error!("the pod's keeper has exited; killing its containers");
        pods.instruments.keeper_lost();
        pod.transition(PodState::stopping);
    }
    for container in pods.store.containers_of(&pod.id) {
        reconcile::end_without_keeper(pods, cgroups, &container).await;
    }
    if needed_keeper {
        pods.events.pod(pod, Level::Stopped);
        if let Err(error) = stopper.stop(pod).await {
            tracing::error!(%error, "failed to release the resources of the pod");
        }
    }
}
