//! Log folders of pods that berth has created. The kubelet creates and removes those of its pods; for other clients berth
//! creates a missing one, and the client removes it after the pod.
//!
//! Such a folder is recorded before it is created (`ROOT/log-folders/ID.json`), and marked with the pod's id by an extended
//! attribute. RemovePodSandbox removes the record: from then on the folder belongs to the client. If the pod's record is
//! lost, the record of the folder is left, and `berth fsck` finds the folder. Only a folder with the mark is removed. The client
//! also gets the folder if another pod has the same one: a repeated RunPodSandbox, after a creation that was interrupted.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, XattrFlags};
use serde::{Deserialize, Serialize};

use crate::ids::PodId;
use crate::store::Folders;
use crate::store::file::{self, FileError};

/// The name of the attribute. Only processes with CAP_SYS_ADMIN can set it.
const ATTRIBUTE: &str = "trusted.berth.pod";

#[derive(Debug, Serialize, Deserialize)]
struct FolderRecord {
    path: PathBuf,
}

/// The result of a removal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    /// It is removed, or was gone.
    Removed,
    /// It stays, for this reason.
    Kept(String),
}

fn record_of(folders: &Folders, id: &str) -> PathBuf {
    folders.log_folders().join(format!("{id}.json"))
}

/// Creates the log folder of a pod, if it does not exist, with its record and its mark.
///
/// # Errors
/// The folder cannot be created. Without a record or a mark it is only not found later.
pub fn create(folders: &Folders, id: &PodId, path: &Path) -> io::Result<()> {
    if path.exists() {
        if let Some(other) = mark(path).filter(|other| other != id.as_str()) {
            drop_record(folders, &other);
        }
        return Ok(());
    }
    let record = record_of(folders, id.as_str());
    let recorded = file::make_private_folder(&folders.log_folders())
        .and_then(|()| file::replace(&record, &FolderRecord { path: path.to_owned() }));
    if let Err(error) = &recorded {
        tracing::debug!(pod = id.as_str(), %error, "failed to record the log folder");
    }
    fs::create_dir_all(path)?;
    if let Err(error) = rustix::fs::setxattr(path, ATTRIBUTE, id.as_str().as_bytes(), XattrFlags::empty()) {
        tracing::debug!(pod = id.as_str(), path = %path.display(), %error, "failed to mark the log folder");
        drop_record(folders, id.as_str());
    }
    Ok(())
}

/// Leaves the log folder of a pod that is removed to the client.
pub fn release(folders: &Folders, id: &PodId) {
    drop_record(folders, id.as_str());
}

/// Removes the log folder of a pod that was not created completely, if it is empty.
pub fn undo(folders: &Folders, id: &PodId) {
    let Some(path) = recorded(folders, id.as_str()) else { return };
    let removed = match marked(&path, id.as_str()) {
        Some(_) => fs::remove_dir(&path),
        None => Ok(()),
    };
    if removed.is_ok() {
        drop_record(folders, id.as_str());
    }
}

/// Returns the pods with a record of a log folder, and the paths.
///
/// # Errors
/// The records cannot be listed.
pub fn all(folders: &Folders) -> Result<Vec<(String, PathBuf)>, FileError> {
    let names = file::names_in(&folders.log_folders())?;
    let ids = names.into_iter().filter_map(|name| name.strip_suffix(".json").map(str::to_owned));
    let valid = ids.filter(|id| PodId::try_from(id.clone()).is_ok());
    Ok(valid.filter_map(|id| recorded(folders, &id).map(|path| (id, path))).collect())
}

/// Removes the log folder of a pod that has no record, with its content, unless one of `mounts` is in it.
///
/// # Errors
/// The folder cannot be removed.
pub fn remove(folders: &Folders, id: &str, mounts: &[PathBuf]) -> io::Result<Removal> {
    let Some(path) = recorded(folders, id) else { return Ok(Removal::Removed) };
    if let Some(folder) = marked(&path, id) {
        // The path without links, which may have changed since it was recorded.
        let real = fs::read_link(berth_runtime::sys::fs::descriptor_path(folder.as_fd()))?;
        if mounts.iter().any(|point| point.starts_with(&real)) {
            return Ok(Removal::Kept("something is mounted in it".to_owned()));
        }
        remove_in_parent(&folder, &real)?;
        drop_record(folders, id);
        return Ok(Removal::Removed);
    }
    drop_record(folders, id);
    match path.exists() {
        true => Ok(Removal::Kept("it is another folder now".to_owned())),
        false => Ok(Removal::Removed),
    }
}

/// Removes an open folder by its name in its parent. Links in it, and a link in its place, are not followed.
fn remove_in_parent(folder: &File, real: &Path) -> io::Result<()> {
    let gone = || io::Error::other("it was moved");
    let (parent, name) = (real.parent().ok_or_else(gone)?, real.file_name().ok_or_else(gone)?);
    let parent = open(parent)?;
    let place = Path::new(&berth_runtime::sys::fs::descriptor_path(parent.as_fd())).join(name);
    let (inside, opened) = (fs::symlink_metadata(&place)?, folder.metadata()?);
    if (inside.dev(), inside.ino()) != (opened.dev(), opened.ino()) {
        return Err(gone());
    }
    fs::remove_dir_all(place)
}

fn open(folder: &Path) -> io::Result<File> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    File::options().read(true).custom_flags(i32::try_from(flags.bits()).unwrap_or(0)).open(folder)
}

/// Opens a folder, if it has the mark of this pod.
fn marked(path: &Path, id: &str) -> Option<File> {
    let folder = open(path).ok()?;
    (mark_of(&folder)? == id).then_some(folder)
}

/// Returns the id of the pod whose mark a folder has.
fn mark(path: &Path) -> Option<String> {
    mark_of(&open(path).ok()?)
}

fn mark_of(folder: &File) -> Option<String> {
    let mut value = [0_u8; 128];
    let length = rustix::fs::fgetxattr(folder, ATTRIBUTE, &mut value[..]).ok()?;
    let id = str::from_utf8(value.get(..length)?).ok()?.to_owned();
    // The id becomes a part of a path.
    PodId::try_from(id.clone()).ok().map(|_| id)
}

fn recorded(folders: &Folders, id: &str) -> Option<PathBuf> {
    file::read::<FolderRecord>(&record_of(folders, id)).ok().map(|record| record.path)
}

fn drop_record(folders: &Folders, id: &str) {
    match fs::remove_file(record_of(folders, id)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::debug!(pod = id, %error, "failed to remove the record of a log folder");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folders(place: &Path) -> Folders {
        Folders::new(&place.join("root"), &place.join("state"))
    }

    #[test]
    fn a_folder_of_the_client_has_no_record() {
        let place = tempfile::tempdir().unwrap();
        let (folders, id, logs) = (folders(place.path()), PodId::random(), place.path().join("logs"));
        fs::create_dir(&logs).unwrap();
        create(&folders, &id, &logs).unwrap();
        assert!(all(&folders).unwrap().is_empty());
        undo(&folders, &id);
        assert!(logs.exists());
    }

    #[test]
    fn a_folder_that_another_pod_uses_stays() {
        let place = tempfile::tempdir().unwrap();
        let (folders, logs) = (folders(place.path()), place.path().join("logs"));
        let (interrupted, repeated) = (PodId::random(), PodId::random());
        create(&folders, &interrupted, &logs).unwrap();
        assert_eq!(all(&folders).unwrap(), [(interrupted.as_str().to_owned(), logs.clone())]);
        create(&folders, &repeated, &logs).unwrap();
        assert!(all(&folders).unwrap().is_empty());
        undo(&folders, &interrupted);
        assert_eq!(remove(&folders, interrupted.as_str(), &[]).unwrap(), Removal::Removed);
        assert!(logs.exists(), "the logs of the repeated pod are gone");
    }

    #[test]
    fn a_folder_without_the_mark_stays() {
        let place = tempfile::tempdir().unwrap();
        let (folders, id, logs) = (folders(place.path()), PodId::random(), place.path().join("logs"));
        fs::create_dir(&logs).unwrap();
        fs::create_dir_all(folders.log_folders()).unwrap();
        file::replace(&record_of(&folders, id.as_str()), &FolderRecord { path: logs.clone() }).unwrap();
        assert_eq!(all(&folders).unwrap(), [(id.as_str().to_owned(), logs.clone())]);
        assert_eq!(
            remove(&folders, id.as_str(), &[]).unwrap(),
            Removal::Kept("it is another folder now".to_owned())
        );
        assert!(logs.exists() && all(&folders).unwrap().is_empty());
    }
}
