//! Lists the objects of the host and compares them with the records.

use std::collections::HashSet;
use std::time::Duration;

use berth_image::Checked;

use super::FsckError;
use super::compare::{Candidate, unowned, without_object};
use super::known::Known;
use super::parts::DaemonParts;
use crate::blocking::blocking;
use crate::error::CriError;
use crate::host::boot_id;
use crate::inventory::{InventoryError, Object, ObjectKind, Owner, Place, Scope};
use crate::inventory::{cgroups, files, network, objects};

/// The time between the two scans. An object that is being removed during one scan is gone in the next.
const INTERVAL: Duration = Duration::from_secs(1);

/// Returns the leftovers, and the records whose object is gone, that two scans have found. `daemon` is the running daemon of
/// this process, if it runs.
///
/// # Errors
/// The host or the records cannot be read.
pub async fn certain(scope: &Scope, daemon: Option<&DaemonParts>) -> Result<Vec<Candidate>, FsckError> {
    let found = once(scope, daemon).await?;
    if found.is_empty() {
        return Ok(found);
    }
    tokio::time::sleep(INTERVAL).await;
    Ok(in_both(found, once(scope, daemon).await?))
}

/// Returns the leftovers of the kinds that a starting daemon removes.
///
/// # Errors
/// The host cannot be read.
pub async fn safe(scope: &Scope, daemon: &DaemonParts) -> Result<Vec<Candidate>, FsckError> {
    let found = safe_once(scope, daemon).await?;
    if found.is_empty() {
        return Ok(found);
    }
    tokio::time::sleep(INTERVAL).await;
    Ok(in_both(found, safe_once(scope, daemon).await?))
}

fn in_both(mut found: Vec<Candidate>, again: Vec<Candidate>) -> Vec<Candidate> {
    let again: HashSet<Candidate> = again.into_iter().collect();
    found.retain(|candidate| again.contains(candidate));
    found
}

async fn safe_once(scope: &Scope, daemon: &DaemonParts) -> Result<Vec<Candidate>, FsckError> {
    let listed = scope.clone();
    let objects = blocking(move || {
        let mut objects = cgroups::objects(&listed);
        objects.extend(network::pins(&listed)?.into_iter().filter(|pin| pin.certain));
        objects.extend(files::temporary(&listed)?);
        Ok::<_, FsckError>(objects)
    });
    let objects = objects.await?;
    Ok(unowned(&objects, &Known::of_daemon(daemon)))
}

async fn once(scope: &Scope, daemon: Option<&DaemonParts>) -> Result<Vec<Candidate>, FsckError> {
    // Objects are listed before the records are read: see the module.
    let mut objects = objects(scope).await?;
    let listed = scope.clone();
    let runs = daemon.is_some();
    let others = blocking(move || {
        let mut others = files::temporary(&listed)?;
        others.extend(files::dead_socket(&listed).filter(|_| !runs));
        Ok::<_, FsckError>(others)
    });
    objects.extend(others.await?);
    let known = match daemon {
        Some(daemon) => Known::of_daemon(daemon),
        None => {
            let boot = boot_id().map_err(|error| CriError::internal("read the boot id", error))?;
            let folders = scope.folders.clone();
            blocking(move || Known::of_disk(&folders, &boot)).await?
        }
    };
    let mut candidates = unowned(&objects, &known);
    candidates.extend(unmarked_cgroups(scope, &candidates).await?);
    candidates.extend(without_object(&objects, &known));
    candidates.extend(images(scope, daemon).await?);
    candidates.sort_by(|left, right| {
        let key = |candidate: &Candidate| (candidate.object.kind, candidate.object.name.clone());
        key(left).cmp(&key(right))
    });
    Ok(candidates)
}

/// Returns cgroups without a mark whose owner is that of another leftover.
async fn unmarked_cgroups(scope: &Scope, found: &[Candidate]) -> Result<Vec<Candidate>, FsckError> {
    let mut ids: Vec<String> = found.iter().map(|found| found.object.owner.id().to_owned()).collect();
    ids.retain(|id| !id.is_empty());
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let listed: HashSet<String> = found.iter().map(|found| found.object.name.clone()).collect();
    let scope = scope.clone();
    let cgroups = blocking(move || Ok::<_, FsckError>(cgroups::of_ids(&scope, &ids))).await?;
    let new = cgroups.into_iter().filter(|cgroup| !listed.contains(&cgroup.name));
    Ok(new.map(|cgroup| Candidate::new(cgroup, "its pod or container has no record")).collect())
}

async fn images(scope: &Scope, daemon: Option<&DaemonParts>) -> Result<Vec<Candidate>, FsckError> {
    let Checked { unowned, incomplete } = match daemon {
        Some(daemon) => daemon.images.check_folders().await?,
        None => {
            let root = scope.config.root.join("image");
            blocking(move || berth_image::check_closed(&root)).await?
        }
    };
    let folder = |folder: berth_image::Unowned| {
        let reason = match folder.kind {
            berth_image::UnownedKind::Layer => "no image has it",
            berth_image::UnownedKind::Image => "it has no usable record",
            berth_image::UnownedKind::Staging | berth_image::UnownedKind::Trash => "its creator has ended",
        };
        let object = Object::at(folder.kind.into(), Owner::Daemon, folder.path.clone());
        Candidate::new(Object { place: Place::Store(folder), ..object }, reason)
    };
    let record = |image: berth_image::Incomplete| {
        let object = Object {
            kind: ObjectKind::ImageRecord,
            owner: Owner::Daemon,
            name: image.image,
            place: Place::Record,
            certain: true,
        };
        Candidate::new(object, format!("its layer {} is gone", image.layer))
    };
    Ok(unowned.into_iter().map(folder).chain(incomplete.into_iter().map(record)).collect())
}

/// Returns the sizes of files and folders in bytes, in the order of the candidates. An object that cannot be measured counts as empty.
///
/// # Errors
/// The measurement was interrupted.
pub async fn sizes(candidates: &[Candidate]) -> Result<Vec<u64>, FsckError> {
    let paths: Vec<_> = candidates
        .iter()
        .map(|candidate| match &candidate.object.place {
            // The content of a mount does not become free.
            Place::Path(path) if candidate.object.kind != ObjectKind::Mount => Some(path.clone()),
            Place::Store(folder) => Some(folder.path.clone()),
            Place::Network(berth_cni::inventory::Object::Attachment { file, .. }) => Some(file.clone()),
            Place::Network(berth_cni::inventory::Object::Address { folder, address, .. }) => {
                Some(folder.join(address))
            }
            _ => None,
        })
        .collect();
    let measure = |path: Option<std::path::PathBuf>| {
        let measured = path.map(|path| berth_image::disk_usage(&path));
        measured.and_then(Result::ok).unwrap_or(0)
    };
    Ok(blocking(move || Ok::<_, CriError>(paths.into_iter().map(measure).collect())).await?)
}

impl From<berth_cni::Error> for FsckError {
    fn from(error: berth_cni::Error) -> Self {
        Self::Inventory(InventoryError::Network(error))
    }
}
