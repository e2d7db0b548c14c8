//! Pods at the start of a daemon.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use berth_runtime::client::FoundKeeper;

use crate::daemon::{Shared, blocking};
use crate::error::CriError;
use crate::event::Level;
use crate::ids::PodId;
use crate::keeper::{Link, NewsReceiver};
use crate::pod::{follow, keeper, stop};
use crate::store::file::FileError;
use crate::store::{Folders, Found, Pod, PodRecord, PodState, file};

/// What is left to do of pods.
#[derive(Debug, Default)]
pub(super) struct Rest {
    /// Was being made, or has no readable record: what bears its id is removed.
    discard: Vec<(PodId, Option<String>)>,
    /// Keepers that nothing can be said to.
    unreachable: Vec<FoundKeeper>,
}

/// Reads every record, and finds the keepers that live.
pub(super) async fn load(daemon: &Shared) -> Result<Rest, CriError> {
    let mut keepers = keeper::living_keepers(daemon).await?;
    let mut rest = Rest::default();
    let folders = daemon.folders.clone();
    let (records, state_folders) =
        blocking(move || Ok::<_, FileError>((read_all(&folders)?, file::names_in(&folders.pods_state())?)))
            .await?;
    for (id, record) in records {
        load_one(daemon, id, record, &mut keepers, &mut rest);
    }
    for name in state_folders {
        match PodId::try_from(name) {
            Ok(id) if daemon.store.pod(id.as_str()).is_err() && !daemon.folders.pod(&id).exists() => {
                tracing::info!(pod = id.as_str(), "a folder of a keeper that no pod has");
                rest.discard.push((id, None));
            }
            _ => {}
        }
    }
    rest.unreachable.extend(keepers.into_values());
    Ok(rest)
}

fn record_file(folders: &Folders, id: &PodId) -> PathBuf {
    folders.pod(id).join("pod.json")
}

type Read = (PodId, Result<PodRecord, FileError>);

fn read_all(folders: &Folders) -> Result<Vec<Read>, FileError> {
    let mut records = Vec::new();
    for name in file::names_in(&folders.pods())? {
        let Ok(id) = PodId::try_from(name.clone()) else {
            tracing::warn!(name, "not a pod: left alone");
            continue;
        };
        match file::read(&record_file(folders, &id)) {
            Err(error) if error.is_shortage() => return Err(error),
            record => records.push((id, record)),
        }
    }
    Ok(records)
}

fn load_one(
    daemon: &Shared,
    id: PodId,
    record: Result<PodRecord, FileError>,
    keepers: &mut BTreeMap<PodId, FoundKeeper>,
    rest: &mut Rest,
) {
    let record = match record {
        Ok(record) => record,
        Err(error) => {
            tracing::warn!(pod = id.as_str(), %error, "a pod without a readable record is removed");
            return rest.discard.push((id, None));
        }
    };
    let folder = daemon.folders.pod_state(&id);
    let reachable = keepers.contains_key(&id) && berth_runtime::client::has_socket(&folder);
    let found = record.state.found(reachable);
    if found == Found::TakeBack {
        tracing::info!(pod = id.as_str(), "a pod that was being made is taken back");
        return rest.discard.push((id, Some(record.cgroup)));
    }
    let pod = Arc::new(Pod::new(record, record_file(&daemon.folders, &id), daemon.records.clone()));
    daemon.store.insert_pod(pod.clone());
    match (found, keepers.remove(&id)) {
        (Found::Follow, Some(keeper)) => {
            pod.set_former_daemon();
            let (link, news) = Link::adopt(keeper.into_process(), folder);
            pod.set_link(Some(link));
            pod.put_news(news);
        }
        // Its folder was removed, or the pod was released and the keeper should have ended.
        (_, Some(keeper)) => rest.unreachable.push(keeper),
        (_, None) => {}
    }
    if found == Found::Ended {
        tracing::warn!(pod = id.as_str(), "the pod's keeper has ended: the pod is not ready");
        pod.happened(PodState::stopping);
    }
}

/// Tells the ends of pods without a keeper, after those of their containers.
pub(super) fn tell_ends(daemon: &Shared) {
    for pod in daemon.store.pods() {
        if pod.link().is_none() && pod.state().is_being_released() {
            daemon.events.pod(daemon, &pod, Level::Stopped);
        }
    }
}

/// Follows the keepers, now that the containers they speak of are known.
pub(super) fn follow(daemon: &Shared) {
    for pod in daemon.store.pods() {
        let news: Option<NewsReceiver> = pod.take_news();
        if let (Some(link), Some(news)) = (pod.link(), news) {
            follow::follow(daemon, &pod, &link, news);
        }
    }
}

/// Ends keepers that cannot be reached, takes back what was being made, and releases what pods hold that are not ready.
pub(super) async fn finish(daemon: &Shared, rest: Rest) {
    keeper::end_unreachable(daemon, rest.unreachable).await;
    let mut tasks = tokio::task::JoinSet::new();
    for (id, cgroup) in rest.discard {
        let daemon = daemon.clone();
        tasks.spawn(async move { discard(&daemon, &id, cgroup).await });
    }
    for pod in daemon.store.pods() {
        if pod.state().is_being_released() {
            let daemon = daemon.clone();
            tasks.spawn(async move {
                if let Err(error) = stop::stop_pod(&daemon, &pod).await {
                    tracing::error!(pod = pod.id.as_str(), %error, "failed to release what the pod held");
                }
            });
        }
    }
    while let Some(done) = tasks.join_next().await {
        if let Err(panic) = done {
            tracing::error!(%panic, "failed to release a pod");
        }
    }
}

/// Removes everything that bears a pod's id. Its keeper was ended before.
async fn discard(daemon: &Shared, id: &PodId, cgroup: Option<String>) {
    if let Err(error) = daemon.network.del(id.as_str(), None).await {
        tracing::warn!(pod = id.as_str(), %error, "failed to detach the network");
    }
    let released = match cgroup {
        Some(cgroup) => stop::release_cgroup(daemon, cgroup).await,
        None => stop::release_cgroups_of(daemon, id.as_str()).await,
    };
    if let Err(error) = released {
        tracing::warn!(pod = id.as_str(), %error, "failed to remove the cgroup");
    }
    let folders = (daemon.folders.pod_state(id), daemon.folders.pod(id));
    let removed =
        blocking(move || file::remove_folder(&folders.0).and_then(|()| file::remove_folder(&folders.1)))
            .await;
    if let Err(error) = removed {
        tracing::warn!(pod = id.as_str(), %error, "failed to remove the pod's folders");
    }
}
