//! Containers at the start of a daemon.

use std::sync::Arc;

use super::names_in;
use crate::container::reconcile;
use crate::daemon::{Shared, blocking};
use crate::error::CriError;
use crate::ids::ContainerId;
use crate::pod::stop::release_cgroup;
use crate::store::{Container, ContainerRecord, ContainerState, file};

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
    for name in names_in(&daemon.folders.containers()) {
        match ContainerId::try_from(name.clone()) {
            Ok(id) => load_one(daemon, id, &mut rest).await,
            Err(_) => tracing::warn!(name, "not a container: left alone"),
        }
    }
    // What is left of those that have ended is killed behind the answers; that they have ended is known now.
    for container in &rest.ended {
        reconcile::note_end(daemon, container).await;
    }
    Ok(rest)
}

async fn load_one(daemon: &Shared, id: ContainerId, rest: &mut Rest) {
    let folder = daemon.folders.container(&id);
    let record_file = Container::record_file(&folder);
    let record: ContainerRecord = match blocking(move || file::read(&record_file)).await {
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

/// Takes back what was being made, and kills what containers without a keeper have left running.
pub(super) async fn finish(daemon: &Shared, rest: Rest) {
    for (id, cgroup) in rest.discard {
        discard(daemon, &id, cgroup).await;
    }
    for container in rest.ended {
        let cgroup = container.with(|record| record.cgroup.clone());
        if let Err(error) = release_cgroup(daemon, cgroup).await {
            tracing::warn!(container = container.id.as_str(), %error, "failed to kill what the container left behind");
        }
    }
}

async fn discard(daemon: &Shared, id: &ContainerId, cgroup: Option<String>) {
    if let Some(cgroup) = cgroup
        && let Err(error) = release_cgroup(daemon, cgroup).await
    {
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
