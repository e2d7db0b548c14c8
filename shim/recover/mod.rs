//! The start of a daemon: what is on disk is held against what runs, and neither is lost nor left behind.
//!
//! The cases, as they are met:
//! * a record that cannot be read, or of something that was being made: taken back
//! * a pod that was ready and whose keeper answers: taken over, with the ends of its containers that happened meanwhile
//! * a pod that was ready and whose keeper is gone, or of another boot: not ready, its containers ended
//! * keepers, writable layers and addresses of nothing that is known: ended and freed
//! * keepers that cannot be reached, since their folder was removed: found among the processes and ended

mod containers;
mod pods;

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use crate::daemon::{Shared, blocking};
use crate::error::CriError;
use crate::pod::keeper;
use crate::store::PodState;

/// Brings store, keepers, cgroups, network and writable layers together. What cannot be mended is logged and does not
/// keep the daemon from starting.
///
/// # Errors
/// The folders of the store cannot be made or read.
pub async fn recover(daemon: &Shared) -> Result<(), CriError> {
    let folders = daemon.folders.clone();
    blocking(move || {
        for folder in [folders.pods(), folders.containers(), folders.pods_state()] {
            crate::store::file::make_private_folder(&folder)?;
        }
        Ok::<_, crate::store::file::FileError>(())
    })
    .await?;
    let views = pods::recover_all(daemon).await?;
    keeper::end_unreachable(daemon).await;
    containers::recover_all(daemon, &views).await?;
    pods::finish(daemon, views).await;
    pods::end_strays(daemon).await;
    sweep_layers(daemon).await;
    sweep_network(daemon).await;
    Ok(())
}

/// The names of what is in a folder of ids.
fn names_in(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

async fn sweep_layers(daemon: &Shared) {
    for id in daemon.images.writable_layers() {
        if daemon.store.container(&id).is_ok() {
            continue;
        }
        match daemon.images.remove_layer(&id).await {
            Ok(()) => tracing::info!(container = id, "removed a writable layer that no container has"),
            Err(error) => {
                tracing::warn!(container = id, %error, "remove a writable layer that no container has")
            }
        }
    }
}

async fn sweep_network(daemon: &Shared) {
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
        Err(error) => tracing::warn!(%error, "free what no pod holds of the network"),
    }
    daemon.network.keep_rules();
}
