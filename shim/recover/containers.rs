//! Recovery of containers.

use std::sync::Arc;
use std::time::Duration;

use berth_image::ImageStore;
use tokio::task::JoinSet;

use crate::blocking::blocking;
use crate::cgroups::Cgroups;
use crate::container::hooks;
use crate::container::reconcile::{self, EndRecord};
use crate::error::CriError;
use crate::handlers;
use crate::ids::ContainerId;
use crate::instruments::{Recovered, RecoveredObject};
use crate::pods::Pods;
use crate::store::container::ContainerRuntime;
use crate::store::file::FileError;
use crate::store::{Container, ContainerRecord, ContainerState, Folders, file};

/// The containers that need cleanup in the background.
#[derive(Debug, Default)]
pub(super) struct ContainerCleanup {
    /// Containers with an interrupted creation, without a readable record or without a pod. Everything with
    /// their id is removed. The cgroup and the runtime are known if the record is.
    discard: Vec<(ContainerId, Option<DiscardedParts>)>,
    /// Containers of pods without a keeper, and whether the keeper has left an exit record.
    ended: Vec<(Arc<Container>, EndRecord)>,
}

/// The parts of a discarded container that its record names.
#[derive(Debug)]
struct DiscardedParts {
    cgroup: String,
    runtime: Option<ContainerRuntime>,
}

/// Reads all records and fills the store.
pub(super) async fn load(pods: &Pods) -> Result<ContainerCleanup, CriError> {
    let mut cleanup = ContainerCleanup::default();
    let folders = pods.folders.clone();
    let records = blocking(move || read_all(&folders)).await?;
    for (id, record) in records {
        load_one(pods, id, record, &mut cleanup);
    }
    // Remaining processes of ended containers are killed in the background. That the containers have ended is recorded now.
    for (container, recorded) in &mut cleanup.ended {
        *recorded = reconcile::record_end_without_keeper(pods, container).await;
    }
    Ok(cleanup)
}

type LoadedContainer = (ContainerId, Result<ContainerRecord, FileError>);

fn read_all(folders: &Folders) -> Result<Vec<LoadedContainer>, FileError> {
    let mut records = Vec::new();
    for name in file::names_in(&folders.containers())? {
        let Ok(id) = ContainerId::try_from(name.clone()) else {
            tracing::warn!(name, "ignored a folder that is not named like a container");
            continue;
        };
        match file::read(&Container::record_file(&folders.container(&id))) {
            Err(error) if error.is_shortage() => return Err(error),
            record => records.push((id, record)),
        }
    }
    Ok(records)
}

fn load_one(
    pods: &Pods,
    id: ContainerId,
    record: Result<ContainerRecord, FileError>,
    cleanup: &mut ContainerCleanup,
) {
    let folder = pods.folders.container(&id);
    let record = match record {
        Ok(record) => record,
        Err(error) => {
            tracing::warn!(container = id.as_str(), %error, "removing a container: its record cannot be read");
            pods.instruments.recovered(RecoveredObject::Container, Recovered::Removed);
            return cleanup.discard.push((id, None));
        }
    };
    let Some(pod) =
        pods.store.pod(record.pod.as_str()).ok().filter(|_| record.state != ContainerState::Creating)
    else {
        tracing::info!(
            container = id.as_str(),
            "removing a container without a pod or after an interrupted creation"
        );
        pods.instruments.recovered(RecoveredObject::Container, Recovered::Removed);
        let parts = DiscardedParts { cgroup: record.cgroup, runtime: record.runtime };
        return cleanup.discard.push((id, Some(parts)));
    };
    let container = Arc::new(Container::new(record, folder, pods.records.clone()));
    pods.store.insert_container(container.clone());
    let has_ended = matches!(container.state(), ContainerState::Exited(_));
    let outcome = if has_ended || pod.link().is_none() { Recovered::Ended } else { Recovered::Followed };
    pods.instruments.recovered(RecoveredObject::Container, outcome);
    if pod.link().is_none() && !has_ended {
        cleanup.ended.push((container, EndRecord::Missing));
    }
}

/// Undoes interrupted creations and kills the remaining processes of containers without a keeper. All run
/// concurrently: processes that do not end must not delay the others.
pub(super) async fn finish(
    folders: &Folders,
    cgroups: &Cgroups,
    images: &ImageStore,
    cleanup: ContainerCleanup,
) {
    let mut tasks = JoinSet::new();
    for (id, parts) in cleanup.discard {
        let (folders, cgroups, images) = (folders.clone(), cgroups.clone(), images.clone());
        tasks.spawn(async move { discard(&folders, &cgroups, &images, &id, parts).await });
    }
    for (container, recorded) in cleanup.ended {
        let cgroups = cgroups.clone();
        tasks.spawn(async move {
            let cgroup = container.with(|record| record.cgroup.clone());
            if let Err(error) = cgroups.release(cgroup).await {
                tracing::warn!(container = container.id.as_str(), %error, "failed to kill the processes of a container without a keeper");
            }
            if recorded == EndRecord::Missing {
                hooks::run_poststop(&container).await;
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        if let Err(panic) = done {
            tracing::error!(%panic, "failed to clean up a container");
        }
    }
}

async fn discard(
    folders: &Folders,
    cgroups: &Cgroups,
    images: &ImageStore,
    id: &ContainerId,
    parts: Option<DiscardedParts>,
) {
    let (cgroup, runtime) = parts.map(|parts| (parts.cgroup, parts.runtime)).unzip();
    if let Some(runtime) = runtime.flatten()
        && let Err(error) = handlers::calls::delete(&runtime, id, Duration::ZERO).await
    {
        tracing::warn!(container = id.as_str(), %error, "failed to delete the container of an OCI runtime");
    }
    let released = match cgroup {
        Some(cgroup) => cgroups.release(cgroup).await,
        None => cgroups.release_all_of(id.as_str()).await,
    };
    if let Err(error) = released {
        tracing::warn!(container = id.as_str(), %error, "failed to remove the cgroup");
    }
    if let Err(error) = images.remove_layer(id.as_str()).await {
        tracing::warn!(container = id.as_str(), %error, "failed to remove the writable layer");
    }
    let folder = folders.container(id);
    if let Err(error) = blocking(move || file::remove_folder(&folder)).await {
        tracing::warn!(container = id.as_str(), %error, "failed to remove the container's folder");
    }
}
