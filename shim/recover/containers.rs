//! Containers at the start of a daemon.

use std::sync::Arc;

use berth_runtime::cgroup::{Cgroup, CgroupPath};
use berth_runtime::wire::{ContainerSnapshot, ExitRecord, Phase};

use super::names_in;
use super::pods::Views;
use crate::container::exit;
use crate::daemon::{Shared, blocking};
use crate::error::CriError;
use crate::ids::ContainerId;
use crate::pod::stop::release_cgroup;
use crate::store::{Container, ContainerRecord, ContainerState, file};

/// Reads every record and brings it up to what its pod's keeper knows.
pub(super) async fn recover_all(daemon: &Shared, views: &Views) -> Result<(), CriError> {
    for name in names_in(&daemon.folders.containers()) {
        let Ok(id) = ContainerId::try_from(name.clone()) else {
            tracing::warn!(name, "not a container: left alone");
            continue;
        };
        let folder = daemon.folders.container(&id);
        let record_file = Container::record_file(&folder);
        let record: ContainerRecord = match blocking(move || file::read(&record_file)).await {
            Ok(record) => record,
            Err(error) => {
                tracing::warn!(container = id.as_str(), %error, "a container without a readable record is gone");
                discard(daemon, &id, None).await;
                continue;
            }
        };
        if record.state == ContainerState::Creating || daemon.store.pod(record.pod.as_str()).is_err() {
            tracing::info!(container = id.as_str(), "was being made, or has no pod: taken back");
            discard(daemon, &id, Some(record.cgroup)).await;
            continue;
        }
        let view = views.get(&record.pod).map(|view| view.containers.as_slice());
        let container = Arc::new(Container::new(record, folder));
        daemon.store.insert_container(container.clone());
        reconcile(daemon, &container, view).await;
    }
    forget_unknown(daemon, views).await;
    Ok(())
}

async fn reconcile(daemon: &Shared, container: &Arc<Container>, view: Option<&[ContainerSnapshot]>) {
    if matches!(container.state(), ContainerState::Exited(_)) {
        return;
    }
    let seen = view.and_then(|view| view.iter().find(|seen| seen.id == container.id.as_str()));
    let changed = match seen.map(|seen| &seen.phase) {
        Some(Phase::Creating | Phase::Created) => Ok(()),
        Some(Phase::Running { started_at }) => {
            end_execs(daemon, container).await;
            container.change(|state| state.started(*started_at))
        }
        Some(Phase::Exited(record)) => return exit::take(daemon, container, record).await,
        None => return ended_unseen(daemon, container).await,
    };
    if let Err(error) = changed {
        tracing::error!(container = container.id.as_str(), %error, "record the state");
    }
}

/// Nobody waits for the execs of a former daemon: their callers were told that it has gone.
async fn end_execs(daemon: &Shared, container: &Container) {
    let recorded = container.with(|record| record.cgroup.clone());
    let hierarchies = daemon.clone();
    let ended = blocking(move || -> Result<(), CriError> {
        let path = CgroupPath::from_recorded(&recorded)?;
        Ok(Cgroup::open(&hierarchies.hierarchies, &path).release_execs()?)
    })
    .await;
    if let Err(error) = ended {
        tracing::warn!(container = container.id.as_str(), %error, "end the execs of a former daemon");
    }
}

/// The keeper does not know it (any more): its last word is the record beside ours.
async fn ended_unseen(daemon: &Shared, container: &Arc<Container>) {
    let path = container.folder().join("exit.json");
    match blocking(move || file::read::<ExitRecord>(&path)).await {
        Ok(record) => exit::take(daemon, container, &record).await,
        Err(_) => exit::lost(daemon, container, "it ended with its keeper or with the host").await,
    }
}

/// A keeper may hold a container whose record is gone.
async fn forget_unknown(daemon: &Shared, views: &Views) {
    for (pod, view) in views {
        let link = daemon.store.pod(pod.as_str()).ok().and_then(|pod| pod.link());
        for seen in view.containers.iter().filter(|seen| daemon.store.container(&seen.id).is_err()) {
            let Some(link) = &link else { continue };
            let call = berth_runtime::wire::Call::Forget { container: seen.id.clone() };
            if let Err(error) = link.done(call).await {
                tracing::warn!(container = seen.id, %error, "forget a container that is not known");
            }
        }
    }
}

async fn discard(daemon: &Shared, id: &ContainerId, cgroup: Option<String>) {
    if let Some(cgroup) = cgroup
        && let Err(error) = release_cgroup(daemon, cgroup).await
    {
        tracing::warn!(container = id.as_str(), %error, "remove the cgroup");
    }
    if let Err(error) = daemon.images.remove_layer(id.as_str()).await {
        tracing::warn!(container = id.as_str(), %error, "remove the writable layer");
    }
    let folder = daemon.folders.container(id);
    if let Err(error) = blocking(move || file::remove_folder(&folder)).await {
        tracing::warn!(container = id.as_str(), %error, "remove the container's folder");
    }
}
