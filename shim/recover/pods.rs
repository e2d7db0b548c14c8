//! Recovery of pods.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use berth_runtime::client::FoundKeeper;
use tracing::Instrument;

use crate::blocking::blocking;
use crate::cgroups::Cgroups;
use crate::error::CriError;
use crate::ids::PodId;
use crate::instruments::{Recovered, RecoveredObject};
use crate::keeper::{KeeperClient, KeeperUpdates};
use crate::log_folders;
use crate::network::PodNetwork;
use crate::pod::stopper::PodStopper;
use crate::pod::{follow, keeper};
use crate::pods::Pods;
use crate::store::Level;
use crate::store::file::FileError;
use crate::store::{Folders, Pod, PodRecord, PodRecovery, PodState, file};

/// The pods and keepers that need cleanup in the background.
#[derive(Debug, Default)]
pub(super) struct PodCleanup {
    /// Pods with an interrupted creation or without a readable record. Everything with their id is removed.
    /// The cgroup is known if the record is.
    discard: Vec<(PodId, Option<String>)>,
    /// Keepers that cannot be connected to.
    unreachable: Vec<FoundKeeper>,
}

/// Reads every record, and finds the keepers that live.
pub(super) async fn load(pods: &Pods) -> Result<PodCleanup, CriError> {
    let mut keepers = keeper::living_keepers(&pods.folders).await?;
    let mut cleanup = PodCleanup::default();
    let folders = pods.folders.clone();
    let (records, state_folders) =
        blocking(move || Ok::<_, FileError>((read_all(&folders)?, file::names_in(&folders.pods_state())?)))
            .await?;
    for (id, record) in records {
        load_one(pods, id, record, &mut keepers, &mut cleanup);
    }
    for name in state_folders {
        match PodId::try_from(name) {
            Ok(id) if pods.store.pod(id.as_str()).is_err() && !pods.folders.pod(&id).exists() => {
                tracing::info!(pod = id.as_str(), "removing a keeper's folder without a pod");
                cleanup.discard.push((id, None));
            }
            _ => {}
        }
    }
    cleanup.unreachable.extend(keepers.into_values());
    Ok(cleanup)
}

fn record_file(folders: &Folders, id: &PodId) -> PathBuf {
    folders.pod(id).join("pod.json")
}

type LoadedPod = (PodId, Result<PodRecord, FileError>);

fn read_all(folders: &Folders) -> Result<Vec<LoadedPod>, FileError> {
    let mut records = Vec::new();
    for name in file::names_in(&folders.pods())? {
        let Ok(id) = PodId::try_from(name.clone()) else {
            tracing::warn!(name, "ignored a folder that is not named like a pod");
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
    pods: &Pods,
    id: PodId,
    record: Result<PodRecord, FileError>,
    keepers: &mut BTreeMap<PodId, FoundKeeper>,
    cleanup: &mut PodCleanup,
) {
    let record = match record {
        Ok(record) => record,
        Err(error) => {
            tracing::warn!(pod = id.as_str(), %error, "removing a pod: its record cannot be read");
            pods.instruments.recovered(RecoveredObject::Pod, Recovered::Removed);
            return cleanup.discard.push((id, None));
        }
    };
    let folder = pods.folders.pod_state(&id);
    let reachable = keepers.contains_key(&id) && berth_runtime::client::has_socket(&folder);
    let recovery = record.state.recovery(reachable);
    pods.instruments.recovered(RecoveredObject::Pod, outcome(recovery));
    if recovery == PodRecovery::Undo {
        tracing::info!(pod = id.as_str(), "removing a pod after an interrupted creation");
        return cleanup.discard.push((id, Some(record.cgroup)));
    }
    let pod = Arc::new(Pod::new(record, record_file(&pods.folders, &id), pods.records.clone()));
    pods.store.insert_pod(pod.clone());
    match (recovery, keepers.remove(&id)) {
        (PodRecovery::Follow, Some(keeper)) => {
            pod.set_from_earlier_daemon();
            let (link, updates) = KeeperClient::adopt(keeper.into_process(), folder);
            pod.set_link(Some(link));
            pod.put_updates(updates);
        }
        // The keeper's folder was removed, or the pod was released and the keeper should have ended.
        (_, Some(keeper)) => cleanup.unreachable.push(keeper),
        (_, None) => {}
    }
    if recovery == PodRecovery::Release {
        tracing::warn!(pod = id.as_str(), "the pod's keeper has ended: the pod is not ready");
        pod.transition(PodState::stopping);
    }
}

fn outcome(recovery: PodRecovery) -> Recovered {
    match recovery {
        PodRecovery::Undo => Recovered::Removed,
        PodRecovery::Follow => Recovered::Followed,
        PodRecovery::Release | PodRecovery::Released => Recovered::Ended,
    }
}

/// Publishes the stop events of pods without a keeper. Those of their containers must be published before.
pub(super) fn publish_ends(pods: &Pods) {
    for pod in pods.store.pods() {
        if pod.link().is_none() && pod.state().is_being_released() {
            pods.events.pod(&pod, Level::Stopped);
        }
    }
}

/// Starts to follow the keepers. All containers must be loaded before, since the keepers report about them.
pub(super) fn follow(stopper: &PodStopper) {
    for pod in stopper.pods.store.pods() {
        let updates: Option<KeeperUpdates> = pod.take_updates();
        if let (Some(link), Some(updates)) = (pod.link(), updates) {
            follow::start(stopper, &pod, &link, updates);
        }
    }
}

/// Ends unreachable keepers, undoes interrupted creations, and releases the resources of pods that are not
/// ready.
pub(super) async fn finish(stopper: &PodStopper, cleanup: PodCleanup) {
    keeper::end_unreachable(&stopper.cgroups, cleanup.unreachable).await;
    let mut tasks = tokio::task::JoinSet::new();
    for (id, cgroup) in cleanup.discard {
        let PodStopper { pods, cgroups, network } = stopper.clone();
        tasks.spawn(async move { discard(&pods.folders, &cgroups, &network, &id, cgroup).await });
    }
    for pod in stopper.pods.store.pods() {
        if pod.state().is_being_released() {
            let stopper = stopper.clone();
            let span = tracing::info_span!(parent: None, "recovery", pod = pod.id.as_str());
            let release = async move {
                if let Err(error) = stopper.stop(&pod).await {
                    tracing::error!(%error, "failed to release a pod");
                }
            };
            tasks.spawn(release.instrument(span));
        }
    }
    while let Some(done) = tasks.join_next().await {
        if let Err(panic) = done {
            tracing::error!(%panic, "failed to release a pod");
        }
    }
}

/// Removes everything with this pod's id. The pod's keeper must have been ended before.
async fn discard(
    folders: &Folders,
    cgroups: &Cgroups,
    network: &PodNetwork,
    id: &PodId,
    cgroup: Option<String>,
) {
    if let Err(error) = network.detach(id.as_str(), None).await {
        tracing::warn!(pod = id.as_str(), %error, "failed to detach a pod from its network");
    }
    let released = match cgroup {
        Some(cgroup) => cgroups.release(cgroup).await,
        None => cgroups.release_all_of(id.as_str()).await,
    };
    if let Err(error) = released {
        tracing::warn!(pod = id.as_str(), %error, "failed to remove the cgroup");
    }
    let (removing, pod) = (folders.clone(), id.clone());
    let removed = blocking(move || {
        log_folders::undo(&removing, &pod);
        file::remove_folder(&removing.pod_state(&pod)).and_then(|()| file::remove_folder(&removing.pod(&pod)))
    })
    .await;
    if let Err(error) = removed {
        tracing::warn!(pod = id.as_str(), %error, "failed to remove the pod's folders");
    }
}
