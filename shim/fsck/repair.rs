//! Removes leftovers, through the functions by which the daemon removes pods and containers.

use std::fs;
use std::io;
use std::path::Path;

use berth_runtime::client::FoundKeeper;

use super::compare::Candidate;
use super::parts::DaemonParts;
use super::report::Outcome;
use crate::blocking::blocking;
use crate::container::remove::remove_container;
use crate::error::CriError;
use crate::inventory::processes::OwnKeepers;
use crate::inventory::{Object, ObjectKind, Place};
use crate::pod::keeper::end_unreachable;
use crate::pod::stop::stop_pod_sandbox;
use crate::pod::stopper::PodStopper;
use crate::store::{ContainerState, file};

/// Removes one leftover.
pub async fn apply(daemon: &DaemonParts, candidate: &Candidate) -> Outcome {
    match remove(daemon, &candidate.object).await {
        Ok(outcome) => {
            tracing::info!(object = %candidate.object, reason = candidate.reason, ?outcome, "repaired a leftover");
            outcome
        }
        Err(error) => {
            tracing::warn!(object = %candidate.object, %error, "failed to remove a leftover");
            Outcome::Failed(error.to_string())
        }
    }
}

async fn remove(daemon: &DaemonParts, object: &Object) -> Result<Outcome, CriError> {
    match &object.place {
        Place::Process(pid) => end_keeper(daemon, *pid, object.owner.id()).await?,
        Place::Cgroup(path) => daemon.cgroups.release(path.to_string()).await?,
        Place::Network(of) => daemon.network.network.remove_object(of).await?,
        Place::Store(folder) => daemon.images.discard(folder).await?,
        Place::Path(path) => match object.kind {
            ObjectKind::WritableLayer => daemon.images.remove_layer(object.owner.id()).await?,
            kind => {
                let path = path.clone();
                blocking(move || remove_path(kind, &path)).await?;
            }
        },
        Place::Record => return remove_record(daemon, object).await,
    }
    Ok(Outcome::Removed)
}

/// Ends a keeper with all processes of its pod, if this process is still that keeper.
async fn end_keeper(daemon: &DaemonParts, pid: i32, pod: &str) -> Result<(), CriError> {
    end_unreachable(&daemon.cgroups, keepers(daemon, pid, pod).await?).await;
    match keepers(daemon, pid, pod).await?.is_empty() {
        true => Ok(()),
        false => Err(CriError::internal(format!("end the keeper of pod {pod}"), "its processes do not end")),
    }
}

async fn keepers(daemon: &DaemonParts, pid: i32, pod: &str) -> Result<Vec<FoundKeeper>, CriError> {
    let (folders, pod) = (daemon.pods.folders.clone(), pod.to_owned());
    blocking(move || {
        let found = OwnKeepers::of(&folders).find();
        let found = found.map_err(|error| CriError::internal("list processes", error))?.into_iter();
        let same = found.filter(|(id, keeper)| id.as_str() == pod && keeper.pid() == pid);
        Ok::<_, CriError>(same.map(|(_, keeper)| keeper).collect())
    })
    .await
}

fn remove_path(kind: ObjectKind, path: &Path) -> Result<(), CriError> {
    let failed = |error: io::Error| CriError::internal(format!("remove {}", path.display()), error);
    match kind {
        ObjectKind::Mount => rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH)
            .map_err(|error| failed(error.into())),
        ObjectKind::TemporaryFile | ObjectKind::Socket => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        },
        _ => Ok(file::remove_folder(path)?),
    }
}

/// Repairs a record whose object is gone: the pod is stopped, the container or the image is removed. A client that needs it
/// creates another one.
async fn remove_record(daemon: &DaemonParts, object: &Object) -> Result<Outcome, CriError> {
    let failed = |status: tonic::Status| CriError::internal(format!("repair {object}"), status.message());
    match object.kind {
        ObjectKind::PodRecord => {
            let DaemonParts { pods, cgroups, network, .. } = daemon.clone();
            stop_pod_sandbox(&PodStopper { pods, cgroups, network }, object.owner.id())
                .await
                .map_err(failed)?;
            Ok(Outcome::Stopped)
        }
        ObjectKind::ContainerRecord => {
            let container = daemon.pods.store.container(object.owner.id());
            if container.is_ok_and(|container| matches!(container.state(), ContainerState::Running { .. })) {
                return Ok(Outcome::Kept("the container runs: stop or remove it".to_owned()));
            }
            remove_container(&daemon.pods, &daemon.cgroups, &daemon.images, object.owner.id())
                .await
                .map_err(failed)?;
            Ok(Outcome::Removed)
        }
        _ => {
            let users = daemon.images.check_folders().await?.incomplete;
            let users = users.into_iter().filter(|image| image.image == object.name);
            let users: Vec<String> = users.flat_map(|image| image.containers).collect();
            if !users.is_empty() {
                return Ok(Outcome::Kept(format!("containers use the image: {}", users.join(", "))));
            }
            daemon.images.remove(&object.name).await?;
            Ok(Outcome::Removed)
        }
    }
}
