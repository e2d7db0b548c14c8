//! What a keeper tells unasked: containers that end, a pause that ends, and its own end.

use std::sync::Arc;

use berth_runtime::client::KeeperProcess;
use berth_runtime::wire::Event;
use tokio::sync::mpsc;
use tracing::Instrument;

use crate::container::exit;
use crate::daemon::Shared;
use crate::event::Level;
use crate::store::{Pod, PodState};

/// Follows a pod's keeper until its connection ends, and takes the end of its process away where this daemon has started
/// it. One that a former daemon has started is reaped by process 1.
pub fn follow(
    daemon: &Shared,
    pod: &Arc<Pod>,
    mut events: mpsc::UnboundedReceiver<Event>,
    process: Option<KeeperProcess>,
) {
    let (daemon, pod) = (daemon.clone(), pod.clone());
    let span = tracing::info_span!(parent: None, "keeper", pod = pod.id.as_str());
    tokio::spawn(
        async move {
            while let Some(event) = events.recv().await {
                take(&daemon, &pod, event).await;
            }
            if let Some(process) = process {
                drop(tokio::task::spawn_blocking(move || process.reap()));
            }
            keeper_lost(&daemon, &pod).await;
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
        Event::PauseExited { code } => {
            if matches!(pod.state(), PodState::Ready { .. }) {
                tracing::warn!(code, "the pause has ended: the pod is not ready");
                mark_stopping(pod);
                daemon.events.pod(daemon, pod, Level::Stopped);
            }
        }
        Event::ExecExited { exec, .. } => tracing::debug!(exec, "nobody waits for the end of this exec"),
        Event::Detached { client, .. } => tracing::debug!(client, "nobody waits for the end of this client"),
    }
}

/// Without its keeper nothing of a pod is looked after: what still runs is killed, by its cgroups.
async fn keeper_lost(daemon: &Shared, pod: &Arc<Pod>) {
    pod.set_link(None);
    if !matches!(pod.state(), PodState::Ready { .. }) {
        return;
    }
    tracing::error!("the pod's keeper has ended: its containers are killed");
    mark_stopping(pod);
    for container in daemon.store.containers_of(&pod.id) {
        exit::lost(daemon, &container, "the pod's keeper has ended").await;
    }
    daemon.events.pod(daemon, pod, Level::Stopped);
    if let Err(error) = super::stop::release(daemon, pod).await {
        tracing::error!(%error, "release what the pod held");
    }
}

fn mark_stopping(pod: &Pod) {
    if let Err(error) = pod.change(PodState::stopping) {
        tracing::error!(%error, "record that the pod is not ready");
    }
}
