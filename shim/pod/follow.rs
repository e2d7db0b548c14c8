//! What a keeper tells unasked: containers that end, a pause that ends, and its own end.

use std::sync::Arc;

use berth_runtime::client::KeeperProcess;
use berth_runtime::wire::Event;
use tokio::sync::mpsc;
use tracing::Instrument;

use crate::container::exit;
use crate::daemon::Shared;
use crate::store::{Pod, PodState};

/// Follows a pod's keeper until its connection ends.
pub fn follow(daemon: &Shared, pod: &Arc<Pod>, mut events: mpsc::UnboundedReceiver<Event>) {
    let (daemon, pod) = (daemon.clone(), pod.clone());
    let span = tracing::info_span!(parent: None, "keeper", pod = pod.id.as_str());
    tokio::spawn(
        async move {
            while let Some(event) = events.recv().await {
                take(&daemon, &pod, event).await;
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
            }
        }
        Event::ExecExited { exec, .. } => tracing::debug!(exec, "nobody waits for the end of this exec"),
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
    if let Err(error) = super::stop::release(daemon, pod).await {
        tracing::error!(%error, "release what the pod held");
    }
}

fn mark_stopping(pod: &Pod) {
    if let Err(error) = pod.change(PodState::stopping) {
        tracing::error!(%error, "record that the pod is not ready");
    }
}

/// Waits for the end of a keeper that this daemon has started, so that it leaves no zombie. One that a former daemon
/// has started is reaped by process 1.
pub fn reap(process: KeeperProcess) {
    tokio::task::spawn(async move {
        match tokio::io::unix::AsyncFd::register(process) {
            Ok(process) => match process.readable().await {
                Ok(_ended) => process.get_ref().reap(),
                Err(error) => tracing::warn!(%error, "wait for a keeper"),
            },
            Err(error) => tracing::warn!(%error, "watch a keeper"),
        }
    });
}
