//! What a former daemon has left: records on disk, keepers that live, cgroups, networks and writable layers.
//!
//! [`load`] reads the records, so that the daemon can answer; what keepers know is taken over as they answer. [`finish`]
//! does the rest behind the answers, since it may take long (CNI plugins, processes that do not end):
//!
//! * a pod or container that was being made: taken back
//! * a pod whose keeper lives: followed, whatever its state
//! * a pod whose keeper's process has ended, or of another boot: not ready, its containers ended, what it held is released
//! * a keeper without a record or without its socket: ended, with all that runs in its pod
//! * writable layers and addresses of nothing that is known: removed and freed

mod containers;
mod pods;

use std::collections::HashSet;
use std::time::Duration;

use crate::daemon::{Shared, blocking};
use crate::error::CriError;
use crate::store::PodState;

/// How long the daemon waits for keepers before it answers without what they know: one that is stopped does not answer.
const KEEPERS: Duration = Duration::from_secs(2);

/// What is left to do when the daemon answers.
#[derive(Debug)]
pub struct Rest {
    pods: pods::Rest,
    containers: containers::Rest,
}

/// Reads the records and connects to the keepers.
///
/// # Errors
/// The folders of the store cannot be made or read, or the processes of the host not be looked at. A daemon that lacks
/// descriptors or memory does not start: it would take what it cannot look at for gone.
pub async fn load(daemon: &Shared) -> Result<Rest, CriError> {
    let folders = daemon.folders.clone();
    blocking(move || {
        for folder in [folders.pods(), folders.containers(), folders.pods_state()] {
            crate::store::file::make_private_folder(&folder)?;
        }
        Ok::<_, crate::store::file::FileError>(())
    })
    .await?;
    let pods = pods::load(daemon).await?;
    let containers = containers::load(daemon).await?;
    pods::tell_ends(daemon);
    pods::follow(daemon);
    let all = async {
        for pod in daemon.store.pods() {
            pod.is_reconciled().await;
        }
    };
    match tokio::time::timeout(KEEPERS, all).await {
        Ok(()) => daemon.events.started(),
        Err(_) => tracing::warn!("not all keepers answer: their pods are shown as they were last recorded"),
    }
    Ok(Rest { pods, containers })
}

/// Takes back what was half made, releases what ended pods hold, and frees what nobody holds.
pub async fn finish(daemon: Shared, rest: Rest) {
    tokio::join!(containers::finish(&daemon, rest.containers), pods::finish(&daemon, rest.pods));
    sweep_layers(&daemon).await;
    sweep_network(&daemon).await;
    daemon.events.started();
}

/// Writable layers that this daemon has found and that no container has. One of a container that is being made is newer.
async fn sweep_layers(daemon: &Shared) {
    for id in &daemon.layers_at_start {
        if daemon.store.container(id).is_ok() {
            continue;
        }
        match daemon.images.remove_layer(id).await {
            Ok(()) => tracing::info!(container = id, "removed a writable layer that no container has"),
            Err(error) => {
                tracing::warn!(container = id, %error, "failed to remove a writable layer that no container has");
            }
        }
    }
}

async fn sweep_network(daemon: &Shared) {
    // No pod is attached meanwhile: plugins are told which pods live.
    let _alone = daemon.attaching.write().await;
    let live: HashSet<String> = daemon
        .store
        .pods()
        .into_iter()
        .filter(|pod| pod.state() != PodState::NotReady { released: true })
        .map(|pod| pod.id.as_str().to_owned())
        .collect();
    daemon.network.resume(|id| daemon.store.pods().iter().find(|pod| pod.id.as_str() == id)?.netns());
    match daemon.network.gc(&live).await {
        Ok(freed) if freed.is_empty() => {}
        Ok(freed) => tracing::info!(?freed, "freed what no pod holds"),
        Err(error) => tracing::warn!(%error, "failed to free what no pod holds of the network"),
    }
    daemon.network.keep();
}
