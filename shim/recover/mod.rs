//! Recovery: what an earlier daemon left behind: records on disk, living keepers, cgroups, networks and
//! writable layers.
//!
//! `load` reads the records, so that the daemon can answer; the state of each keeper is taken over as soon
//! as it answers. `finish` does the rest in the background, since it may take long (CNI plugins, processes
//! that do not end):
//!
//! * an interrupted creation of a pod or container is undone, also that of a pod from a checkpoint
//! * a pod with a living keeper is followed, whatever its state
//! * if a pod's keeper has ended, or the pod ran in another boot, the pod becomes not ready: its containers
//!   have ended, its resources are released
//! * a keeper without a record or without its socket is ended, with everything that runs in its pod
//! * writable layers and addresses without an owner are removed and freed, then cgroups, pinned network namespaces and
//!   temporary files ([`crate::fsck::sweep`])
//! * [`containers`]: recovery of containers
//! * [`pods`]: recovery of pods

mod containers;
mod pods;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use berth_image::ImageStore;
use tracing::Instrument;

use crate::blocking::blocking;
use crate::container::checkpoint;
use crate::daemon::{Daemon, Shared};
use crate::error::CriError;
use crate::fsck;
use crate::pod::{self, stopper::PodStopper};
use crate::store::Store;

/// How long the daemon waits for keepers before it answers with the recorded state: a stopped keeper does not
/// answer.
const KEEPERS_TIMEOUT: Duration = Duration::from_secs(2);

/// The cleanup that runs in the background.
#[derive(Debug)]
struct PendingCleanup {
    pods: pods::PodCleanup,
    containers: containers::ContainerCleanup,
    /// The writable layers that existed when the daemon started.
    layers: Vec<String>,
    /// The pods that an earlier daemon was creating from a checkpoint.
    restoring: Vec<String>,
}

/// Takes over the pods of an earlier daemon. When it returns, the daemon can answer; the cleanup goes on in the background.
///
/// # Errors
/// The folders of the store cannot be created or read, or the host's processes cannot be listed.
pub async fn run(daemon: &Shared) -> Result<(), CriError> {
    let started = Instant::now();
    let cleanup = load(&PodStopper::of(daemon), &daemon.images).await?;
    daemon.pods.instruments.recovery_took(started.elapsed());
    tokio::spawn(finish(daemon.clone(), cleanup).in_current_span());
    berth_runtime::sys::memory::trim();
    Ok(())
}

/// Takes over the pods of an earlier daemon like [`run`], and waits until the cleanup is finished.
///
/// # Errors
/// As [`run`].
pub async fn complete(daemon: &Shared) -> Result<(), CriError> {
    let cleanup = load(&PodStopper::of(daemon), &daemon.images).await?;
    finish(daemon.clone(), cleanup).await;
    Ok(())
}

/// Reads the records and connects to the keepers.
///
/// # Errors
/// The folders of the store cannot be created or read, or the host's processes cannot be listed. A daemon
/// that lacks descriptors or memory does not start: it would treat objects that it cannot read as gone.
async fn load(stopper: &PodStopper, images: &ImageStore) -> Result<PendingCleanup, CriError> {
    let layers = images.writable_layers();
    let stores = &stopper.pods;
    let folders = stores.folders.clone();
    blocking(move || {
        for folder in [folders.pods(), folders.containers(), folders.pods_state()] {
            crate::store::file::make_private_folder(&folder)?;
        }
        Ok::<_, crate::store::file::FileError>(())
    })
    .await?;
    let pods = pods::load(stores).await?;
    let containers = containers::load(stores).await?;
    let restoring = restoring(&stores.store);
    pods::publish_ends(stores);
    pods::follow(stopper);
    let all = async {
        for pod in stores.store.pods() {
            pod.is_reconciled().await;
        }
    };
    match tokio::time::timeout(KEEPERS_TIMEOUT, all).await {
        Ok(()) => stores.events.recovery_finished(),
        Err(_) => {
            tracing::warn!("some keepers did not answer in time; their pods are shown as last recorded")
        }
    }
    Ok(PendingCleanup { pods, containers, layers, restoring })
}

/// Undoes interrupted creations, releases the resources of ended pods, and frees resources without an owner.
async fn finish(daemon: Shared, cleanup: PendingCleanup) {
    let Daemon { pods, cgroups, images, network, .. } = &*daemon;
    let stopper = PodStopper::of(&daemon);
    checkpoint::remove_leftovers(pods, cgroups);
    tokio::join!(
        containers::finish(&pods.folders, cgroups, images, cleanup.containers),
        pods::finish(&stopper, cleanup.pods)
    );
    for pod in &cleanup.restoring {
        match pod::remove::remove_pod_sandbox(&daemon, pod).await {
            Ok(()) => tracing::info!(pod, "removed a pod whose restore was interrupted"),
            Err(error) => tracing::warn!(pod, %error, "failed to remove a pod whose restore was interrupted"),
        }
    }
    sweep_layers(&pods.store, images, &cleanup.layers).await;
    network.sweep(&pods.store).await;
    sweep_host(&fsck::DaemonParts::of(&daemon)).await;
    pods.events.recovery_finished();
}

fn restoring(store: &Store) -> Vec<String> {
    let pods = store.pods().into_iter().filter(|pod| pod.with(|record| record.restores));
    pods.map(|pod| pod.id.as_str().to_owned()).collect()
}

/// Removes writable layers without a container. Only those that existed at the start are checked: the layer
/// of a container that is being created is newer.
async fn sweep_layers(store: &Store, images: &ImageStore, layers: &[String]) {
    for id in layers {
        if store.container(id).is_ok() {
            continue;
        }
        match images.remove_layer(id).await {
            Ok(()) => tracing::info!(container = id, "removed a writable layer without a container"),
            Err(error) => {
                tracing::warn!(container = id, %error, "failed to remove a writable layer without a container");
            }
        }
    }
}

/// Removes objects that no record names: cgroups, pinned network namespaces and temporary files.
async fn sweep_host(parts: &fsck::DaemonParts) {
    match fsck::sweep(parts).await {
        Ok(report) if report.is_clean() => {}
        Ok(report) => tracing::info!(objects = report.findings.len(), "removed objects without a record"),
        Err(error) => tracing::warn!(%error, "failed to look for objects without a record"),
    }
}
