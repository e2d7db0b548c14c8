//! Pods at the start of a daemon.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_runtime::client::FoundKeeper;

use super::names_in;
use crate::daemon::{Shared, blocking};
use crate::error::CriError;
use crate::event::Level;
use crate::ids::PodId;
use crate::keeper::{Link, NewsReceiver};
use crate::pod::{follow, keeper, stop};
use crate::store::{Pod, PodRecord, PodState, file};

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
    let mut keepers = keeper::living(daemon).await?;
    let mut rest = Rest::default();
    for name in names_in(&daemon.folders.pods()) {
        let Ok(id) = PodId::try_from(name.clone()) else {
            tracing::warn!(name, "not a pod: left alone");
            continue;
        };
        load_one(daemon, id, &mut keepers, &mut rest).await;
    }
    for name in names_in(&daemon.folders.pods_state()) {
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

async fn load_one(daemon: &Shared, id: PodId, keepers: &mut BTreeMap<PodId, FoundKeeper>, rest: &mut Rest) {
    let record_file = daemon.folders.pod(&id).join("pod.json");
    let reading = record_file.clone();
    let record: PodRecord = match blocking(move || file::read(&reading)).await {
        Ok(record) => record,
        Err(error) => {
            tracing::warn!(pod = id.as_str(), %error, "a pod without a readable record is removed");
            return rest.discard.push((id, None));
        }
    };
    if record.state == PodState::Creating {
        tracing::info!(pod = id.as_str(), "a pod that was being made is taken back");
        return rest.discard.push((id, Some(record.cgroup)));
    }
    let pod = Arc::new(Pod::new(record, record_file, daemon.records.clone()));
    daemon.store.insert_pod(pod.clone());
    let folder = daemon.folders.pod_state(&id);
    match keepers.remove(&id) {
        Some(keeper) if berth_runtime::client::has_socket(&folder) => {
            pod.set_former_daemon();
            let (link, news) = Link::adopt(keeper.into_process(), folder);
            pod.set_link(Some(link));
            pod.put_news(news);
        }
        // Its folder was removed.
        Some(keeper) => rest.unreachable.push(keeper),
        None => {}
    }
    if pod.link().is_none() && pod.state() != (PodState::NotReady { released: true }) {
        tracing::warn!(pod = id.as_str(), "the pod's keeper has ended: the pod is not ready");
        pod.happened(PodState::stopping);
    }
}

/// Tells the ends of pods without a keeper, after those of their containers.
pub(super) fn tell_ends(daemon: &Shared) {
    for pod in daemon.store.pods() {
        if pod.link().is_none() && pod.state() == (PodState::NotReady { released: false }) {
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
        if pod.state() == (PodState::NotReady { released: false }) {
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
    if let Some(cgroup) = cgroup
        && let Err(error) = stop::release_cgroup(daemon, cgroup).await
    {
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
