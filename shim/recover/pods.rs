//! Pods at the start of a daemon.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use berth_runtime::wire::{Call, ContainerSnapshot, Event};
use tokio::sync::mpsc;

use super::names_in;
use crate::daemon::{Shared, blocking};
use crate::error::CriError;
use crate::ids::PodId;
use crate::keeper::{Link, LinkError};
use crate::pod::{follow, keeper, run, stop};
use crate::store::{Pod, PodRecord, PodState, file};

/// A keeper answers at once, but for a machine that is overloaded, which must not cost a pod its life. One that is gone
/// refuses the connection and is not waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a keeper knows of its containers, and the events that it sends from now on.
#[derive(Debug)]
pub(super) struct View {
    pub(super) containers: Vec<ContainerSnapshot>,
    events: mpsc::UnboundedReceiver<Event>,
}

/// The view of each pod's keeper; a pod without a keeper is not in it.
pub(super) type Views = HashMap<PodId, View>;

/// Reads every record and takes over the keepers that answer, all at the same time.
pub(super) async fn recover_all(daemon: &Shared) -> Result<Views, CriError> {
    let mut tasks = tokio::task::JoinSet::new();
    for name in names_in(&daemon.folders.pods()) {
        let daemon = daemon.clone();
        tasks.spawn(async move { recover_one(&daemon, name).await });
    }
    let mut views = Views::new();
    while let Some(done) = tasks.join_next().await {
        match done {
            Ok(Some((id, view))) => drop(views.insert(id, view)),
            Ok(None) => {}
            Err(panic) => tracing::error!(%panic, "take over a pod"),
        }
    }
    Ok(views)
}

async fn recover_one(daemon: &Shared, name: String) -> Option<(PodId, View)> {
    let Ok(id) = PodId::try_from(name.clone()) else {
        tracing::warn!(name, "not a pod: left alone");
        return None;
    };
    let record_file = daemon.folders.pod(&id).join("pod.json");
    let reading = record_file.clone();
    let record: PodRecord = match blocking(move || file::read(&reading)).await {
        Ok(record) => record,
        Err(error) => {
            tracing::warn!(pod = id.as_str(), %error, "a pod without a readable record is gone: cleaned by its id");
            discard(daemon, &id, None).await;
            return None;
        }
    };
    if record.state == PodState::Creating {
        tracing::info!(pod = id.as_str(), "was being made: taken back");
        discard(daemon, &id, Some(record.cgroup)).await;
        return None;
    }
    let same_boot = record.boot_id == daemon.boot_id;
    let pod = Arc::new(Pod::new(record, record_file));
    daemon.store.insert_pod(pod.clone());
    let PodState::Ready { .. } = pod.state() else { return None };
    let taken = if same_boot { take_over(daemon, &pod).await } else { Err(LinkError::Gone) };
    match taken {
        Ok(view) => Some((id, view)),
        Err(error) => {
            tracing::warn!(pod = id.as_str(), %error, "not ready any more");
            if let Err(error) = pod.change(PodState::stopping) {
                tracing::error!(pod = id.as_str(), %error, "record that the pod is not ready");
            }
            None
        }
    }
}

/// Connects to a pod's keeper and asks what it knows.
async fn take_over(daemon: &Shared, pod: &Arc<Pod>) -> Result<View, LinkError> {
    let (link, events) = connect(daemon, &pod.id).await?;
    let snapshot = match tokio::time::timeout(PATIENCE, link.hello()).await {
        Ok(snapshot) => snapshot?,
        Err(_) => return Err(LinkError::Gone),
    };
    if snapshot.pause.is_none() {
        // The pod is over; the keeper stays until its containers are accounted for.
        pod.set_link(Some(link));
        pod.change(PodState::stopping).map_err(|error| LinkError::Unexpected(error.to_string()))?;
        return Ok(View { containers: snapshot.containers, events });
    }
    let (outcome, descriptors) = link.call(Call::Namespaces, Vec::new()).await?;
    let pause =
        run::pause_of(outcome, descriptors).map_err(|error| LinkError::Unexpected(error.to_string()))?;
    pod.set_netns(Some(pause.netns));
    pod.set_userns(pause.userns);
    pod.set_link(Some(link));
    Ok(View { containers: snapshot.containers, events })
}

type Connected = (Link, mpsc::UnboundedReceiver<Event>);

async fn connect(daemon: &Shared, id: &PodId) -> Result<Connected, LinkError> {
    let folder = daemon.folders.pod_state(id);
    let connection = tokio::task::spawn_blocking(move || berth_runtime::client::connect(&folder))
        .await
        .map_err(|_| LinkError::Gone)?
        .map_err(|error| LinkError::Unexpected(error.to_string()))?;
    Link::start(connection)
}

/// Follows the keepers, now that the containers they speak of are known, and stops the pods that are not ready but
/// still hold something.
pub(super) async fn finish(daemon: &Shared, mut views: Views) {
    let mut tasks = tokio::task::JoinSet::new();
    for pod in daemon.store.pods() {
        if let Some(view) = views.remove(&pod.id) {
            follow::follow(daemon, &pod, view.events, None);
        }
        if pod.state() == (PodState::NotReady { released: false }) {
            let daemon = daemon.clone();
            tasks.spawn(async move {
                if let Err(error) = stop::stop_pod(&daemon, &pod).await {
                    tracing::error!(pod = pod.id.as_str(), %error, "release what the pod held");
                }
            });
        }
    }
    while let Some(done) = tasks.join_next().await {
        if let Err(panic) = done {
            tracing::error!(%panic, "release a pod");
        }
    }
}

/// Ends keepers whose pod is not known.
pub(super) async fn end_strays(daemon: &Shared) {
    for name in names_in(&daemon.folders.pods_state()) {
        match PodId::try_from(name) {
            Ok(id) if daemon.store.pod(id.as_str()).is_err() => {
                tracing::info!(pod = id.as_str(), "a keeper's folder that no pod has");
                discard(daemon, &id, None).await;
            }
            _ => {}
        }
    }
}

/// Ends and removes everything that bears a pod's id.
async fn discard(daemon: &Shared, id: &PodId, cgroup: Option<String>) {
    let link = connect(daemon, id).await.ok().map(|(link, _events)| link);
    if let Err(error) = keeper::end(daemon, id, link.as_ref()).await {
        tracing::warn!(pod = id.as_str(), error, "end the keeper");
    }
    if let Err(error) = daemon.network.del(id.as_str(), None).await {
        tracing::warn!(pod = id.as_str(), %error, "detach the network");
    }
    if let Some(cgroup) = cgroup
        && let Err(error) = stop::release_cgroup(daemon, cgroup).await
    {
        tracing::warn!(pod = id.as_str(), %error, "remove the cgroup");
    }
    let folders = (daemon.folders.pod_state(id), daemon.folders.pod(id));
    let removed =
        blocking(move || file::remove_folder(&folders.0).and_then(|()| file::remove_folder(&folders.1)))
            .await;
    if let Err(error) = removed {
        tracing::warn!(pod = id.as_str(), %error, "remove the pod's folders");
    }
}
