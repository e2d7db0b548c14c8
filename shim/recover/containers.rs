//! Containers at the start of a daemon.

use std::sync::Arc;

use tokio::task::JoinSet;

use crate::container::reconcile;
use crate::daemon::{Shared, blocking};
use crate::error::CriError;
use crate::ids::ContainerId;
use crate::pod::stop::{release_cgroup, release_cgroups_of};
use crate::store::file::FileError;
use crate::store::{Container, ContainerRecord, ContainerState, Folders, file};

/// What is left to do of containers.
#[derive(Debug, Default)]
pub(super) struct Rest {
    /// Was being made, has no readable record or no pod: what bears its id is removed.
    discard: Vec<(ContainerId, Option<String>)>,
    /// Its pod has no keeper.
    ended: Vec<Arc<Container>>,
}

/// Reads every record.
pub(super) async fn load(daemon: &Shared) -> Result<Rest, CriError> {
    let mut rest = Rest::default();
    let folders = daemon.folders.clone();
    let records = blocking(move || read_all(&folders)).await?;
    for (id, record) in records {
        load_one(daemon, id, record, &mut rest);
    }
    // What is left of those that have ended is killed behind the answers; that they have ended is known now.
    for container in &rest.ended {
        reconcile::record_end_without_keeper(daemon, container).await;
    }
    Ok(rest)
}

type Read = (ContainerId, Result<ContainerRecord, FileError>);

fn read_all(folders: &Folders) -> Result<Vec<Read>, FileError> {
    let mut records = Vec::new();
    for name in file::names_in(&folders.containers())? {
        let Ok(id) = ContainerId::try_from(name.clone()) else {
            tracing::warn!(name, "not a container: left alone");
            continue;
        };
        match file::read(&Container::record_file(&folders.container(&id))) {
            Err(error) if error.is_shortage() => return Err(error),
            record => records.push((id, record)),
        }
    }
    Ok(records)
}

fn load_one(daemon: &Shared, id: ContainerId, record: Result<ContainerRecord, FileError>, rest: &mut Rest) {
    let folder = daemon.folders.container(&id);
    let record = match record {
        Ok(record) => record,
        Err(error) => {
            tracing::warn!(container = id.as_str(), %error, "a container without a readable record is removed");
            return rest.discard.push((id, None));
        }
    };
    let Some(pod) =
        daemon.store.pod(record.pod.as_str()).ok().filter(|_| record.state != ContainerState::Creating)
    else {
        tracing::info!(
            container = id.as_str(),
            "a container that was being made, or that has no pod, is taken back"
        );
        return rest.discard.push((id, Some(record.cgroup)));
    };
    let container = Arc::new(Container::new(record, folder, daemon.records.clone()));
    daemon.store.insert_container(container.clone());
    if pod.link().is_none() && !matches!(container.state(), ContainerState::Exited(_)) {
        rest.ended.push(container);
    }
}

/// Takes back what was being made, and kills what containers without a keeper have left running: all at once, since one
/// whose processes do not end must not hold up the others.
pub(super) async fn finish(daemon: &Shared, rest: Rest) {
    let mut tasks = JoinSet::new();
    for (id, cgroup) in rest.discard {
        let daemon = daemon.clone();
        tasks.spawn(async move { discard(&daemon, &id, cgroup).await });
    }
    for container in rest.ended {
        let daemon = daemon.clone();
        tasks.spawn(async move {
            let cgroup = container.with(|record| record.cgroup.clone());
            if let Err(error) = release_cgroup(&daemon, cgroup).await {
                tracing::warn!(container = container.id.as_str(), %error, "failed to kill what the container left behind");
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        if let Err(panic) = done {
            tracing::error!(%panic, "failed to clean up a container");
        }
    }
}

async fn discard(daemon: &Shared, id: &ContainerId, cgroup: Option<String>) {
    let released = match cgroup {
        Some(cgroup) => release_cgroup(daemon, cgroup).await,
        None => release_cgroups_of(daemon, id.as_str()).await,
    };
    if let Err(error) = released {
        tracing::warn!(container = id.as_str(), %error, "failed to remove the cgroup");
    }
    if let Err(error) = daemon.images.remove_layer(id.as_str()).await {
        tracing::warn!(container = id.as_str(), %error, "failed to remove the writable layer");
    }
    let folder = daemon.folders.container(id);
    if let Err(error) = blocking(move || file::remove_folder(&folder)).await {
        tracing::warn!(container = id.as_str(), %error, "failed to remove the container's folder");
    }
}
