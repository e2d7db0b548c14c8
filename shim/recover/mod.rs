//! Recovery: what an earlier daemon left behind: records on disk, living keepers, cgroups, networks and
//! writable layers.
//!
//! `load` reads the records, so that the daemon can answer; the state of each keeper is taken over as soon
//! as it answers. `finish` does the rest in the background, since it may take long (CNI plugins, processes
//! that do not end):
//!
//! * an interrupted creation of a pod or container is undone
//! * a pod with a living keeper is followed, whatever its state
//! * if a pod's keeper has ended, or the pod ran in another boot, the pod becomes not ready: its containers
//!   have ended, its resources are released
//! * a keeper without a record or without its socket is ended, with everything that runs in its pod
//! * writable layers and addresses without an owner are removed and freed

mod containers;
mod pods;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use tracing::Instrument;

use crate::blocking::blocking;
use crate::daemon::Shared;
use crate::error::CriError;
use crate::store::PodState;

/// How long the daemon waits for keepers before it answers with the recorded state: a stopped keeper does not
/// answer.
const KEEPERS_TIMEOUT: Duration = Duration::from_secs(2);

/// The cleanup that runs in the background.
#[derive(Debug)]
struct PendingCleanup {
    pods: pods::PodCleanup,
    containers: containers::ContainerCleanup,
}

/// Takes over the pods of an earlier daemon. When it returns, the daemon can answer; the cleanup goes on in the background.
///
/// # Errors
/// The folders of the store cannot be created or read, or the host's processes cannot be listed.
pub async fn run(daemon: &Shared) -> Result<(), CriError> {
    let started = Instant::now();
    let cleanup = load(daemon).await?;
    daemon.instruments.recovery_took(started.elapsed());
    tokio::spawn(finish(daemon.clone(), cleanup).in_current_span());
    berth_runtime::sys::memory::trim();
    Ok(())
}

/// Reads the records and connects to the keepers.
///
/// # Errors
/// The folders of the store cannot be created or read, or the host's processes cannot be listed. A daemon
/// that lacks descriptors or memory does not start: it would treat objects that it cannot read as gone.
async fn load(daemon: &Shared) -> Result<PendingCleanup, CriError> {
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
    pods::publish_ends(daemon);
    pods::follow(daemon);
    let all = async {
        for pod in daemon.store.pods() {
            pod.is_reconciled().await;
        }
    };
    match tokio::time::timeout(KEEPERS_TIMEOUT, all).await {
        Ok(()) => daemon.events.recovery_finished(),
        Err(_) => {
            tracing::warn!("some keepers did not answer in time; their pods are shown as last recorded")
        }
    }
    Ok(PendingCleanup { pods, containers })
}

/// Undoes interrupted creations, releases the resources of ended pods, and frees resources without an owner.
async fn finish(daemon: Shared, cleanup: PendingCleanup) {
    tokio::join!(containers::finish(&daemon, cleanup.containers), pods::finish(&daemon, cleanup.pods));
    sweep_layers(&daemon).await;
    sweep_network(&daemon).await;
    daemon.events.recovery_finished();
}

/// Removes writable layers without a container. Only those that existed at the start are checked: the layer
/// of a container that is being created is newer.
async fn sweep_layers(daemon: &Shared) {
    for id in &daemon.layers_at_start {
        if daemon.store.container(id).is_ok() {
            continue;
        }
        match daemon.images.remove_layer(id).await {
            Ok(()) => tracing::info!(container = id, "removed a writable layer without a container"),
            Err(error) => {
                tracing::warn!(container = id, %error, "failed to remove a writable layer without a container");
            }
        }
    }
}

async fn sweep_network(daemon: &Shared) {
    // No pod may be attached meanwhile: plugins receive the list of live pods.
    let _exclusive = daemon.attaching.write().await;
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
        Ok(freed) => tracing::info!(?freed, "freed network resources without a pod"),
        Err(error) => tracing::warn!(%error, "failed to free network resources without a pod"),
    }
    daemon.network.keep();
}
