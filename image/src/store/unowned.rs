//! Folders of the store that no record owns, and records whose layers are gone. While a store is open it knows what is in
//! use, and lists and removes safely beside pulls. When no store is open, the same is read from the disk.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::disk_usage::DiskUsage;
use super::folders::{Folders, RECORD, names, read_json};
use super::layer_key::LayerKey;
use super::record::ImageRecord;
use super::{ImageStore, Inner};
use crate::digest::Digest;
use crate::error::{Error, blocking};

/// The kind of a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UnownedKind {
    /// A layer that no image uses.
    Layer,
    /// An image without a usable record.
    Image,
    /// A folder in which something was created.
    Staging,
    /// A removed folder that is not deleted yet.
    Trash,
}

/// A folder that no record owns.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Unowned {
    /// Its kind.
    pub kind: UnownedKind,
    /// Its path.
    pub path: PathBuf,
}

/// A record of an image that has a missing layer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Incomplete {
    /// The id of the image.
    pub image: String,
    /// The missing layer.
    pub layer: String,
    /// The containers that use the image.
    pub containers: Vec<String>,
}

/// The result of a check of the store's folders.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Folders without a record.
    pub unowned: Vec<Unowned>,
    /// Images with a missing layer.
    pub incomplete: Vec<Incomplete>,
}

/// The staging folders in use.
#[derive(Debug, Default)]
pub(super) struct StagingFolders {
    paths: Mutex<HashSet<PathBuf>>,
}

impl StagingFolders {
    pub(super) fn add(&self, path: &Path) {
        self.paths().insert(path.to_owned());
    }

    pub(super) fn forget(&self, path: &Path) {
        self.paths().remove(path);
    }

    fn paths(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The names of folders on the disk, by their kind.
struct Listed(Vec<Unowned>);

impl Listed {
    fn read(folders: &Folders) -> Result<Self, Error> {
        let mut all = Vec::new();
        let kinds = [
            (UnownedKind::Layer, folders.layers()),
            (UnownedKind::Image, folders.images()),
            (UnownedKind::Staging, folders.tmp()),
            (UnownedKind::Trash, folders.trash()),
        ];
        for (kind, folder) in kinds {
            for name in names_if_any(&folder)? {
                all.push(Unowned { kind, path: folder.join(name) });
            }
        }
        Ok(Self(all))
    }

    fn without(self, is_owned: impl Fn(&Unowned) -> bool) -> Vec<Unowned> {
        self.0.into_iter().filter(|folder| !is_owned(folder)).collect()
    }
}

/// Lists the names in a folder that may be missing.
fn names_if_any(folder: &Path) -> Result<Vec<String>, Error> {
    match fs::symlink_metadata(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        _ => names(folder),
    }
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// Checks the folders of a store that no process has open. Nothing is created or changed.
///
/// # Errors
/// The folders or a record cannot be read.
pub fn check_closed(root: &Path) -> Result<Checked, Error> {
    let folders = Folders::existing(root);
    let listed = Listed::read(&folders)?;
    let (mut images, mut layers) = (HashSet::new(), HashSet::new());
    let mut incomplete = Vec::new();
    for name in names_if_any(&folders.images())? {
        let folder = folders.images().join(name);
        match read_json::<ImageRecord>(&folder.join(RECORD)) {
            Ok(record) if folders.image(&record.id) == folder => {
                incomplete.extend(missing_layer(&folders, &record, Vec::new()));
                layers.extend(record.layers.iter().map(|key| folders.layer(key)));
                images.insert(folder);
            }
            Err(error) if error.is_shortage() => return Err(error),
            _ => {}
        }
    }
    let unowned = listed.without(|folder| images.contains(&folder.path) || layers.contains(&folder.path));
    Ok(Checked { unowned, incomplete })
}

fn missing_layer(folders: &Folders, record: &ImageRecord, containers: Vec<String>) -> Option<Incomplete> {
    let key = record.layers.iter().find(|key| !folders.layer_fs(key).exists()).filter(|_| !record.removed)?;
    Some(Incomplete { image: record.id.to_string(), layer: key.to_string(), containers })
}

impl ImageStore {
    /// Checks the folders of the store. Folders that are being created or deleted are in use.
    ///
    /// # Errors
    /// The folders cannot be read.
    pub async fn check_folders(&self) -> Result<Checked, Error> {
        let inner = self.inner().clone();
        blocking("check the folders of the image store", move || {
            // The folders are listed before the index is read: a folder is in use before it exists.
            let listed = Listed::read(&inner.folders)?;
            Ok(Checked {
                unowned: listed.without(|folder| inner.is_used(folder)),
                incomplete: inner.incomplete(),
            })
        })
        .await
    }

    /// Removes a folder that no record owns, unless it is in use by now.
    ///
    /// # Errors
    /// The folder cannot be moved away.
    pub async fn discard(&self, folder: &Unowned) -> Result<(), Error> {
        let (inner, folder) = (self.inner().clone(), folder.clone());
        blocking("remove a folder of the image store", move || inner.discard_unowned(&folder)).await
    }

    /// Waits until removed folders are deleted, or for this time.
    pub async fn wait_for_deletions(&self, limit: Duration) {
        const INTERVAL: Duration = Duration::from_millis(10);
        let deleted = async {
            while !self.inner().trash.is_empty() && !self.inner().trash.is_stuck() {
                tokio::time::sleep(INTERVAL).await;
            }
        };
        // The rest is deleted by the next process that opens the store.
        drop(tokio::time::timeout(limit, deleted).await);
    }
}

impl Inner {
    fn is_used(&self, folder: &Unowned) -> bool {
        let name = name_of(&folder.path);
        match folder.kind {
            UnownedKind::Layer => {
                name.parse::<LayerKey>().is_ok_and(|key| self.index().layer(&key).is_some())
            }
            UnownedKind::Image => {
                Digest::from_file_name(name).is_some_and(|id| self.index().entry(&id).is_some())
            }
            UnownedKind::Staging => self.staging.paths().contains(&folder.path),
            UnownedKind::Trash => self.trash.contains(&folder.path),
        }
    }

    fn incomplete(&self) -> Vec<Incomplete> {
        let records: Vec<_> = {
            let index = self.index();
            // An image whose layer was missing at open is damaged, and not listed.
            let entries = index.entries().filter(|entry| !entry.record.removed);
            let whole = entries.filter(|entry| !index.has_broken(&entry.record.layers));
            whole
                .map(|entry| (entry.record.clone(), entry.containers().map(str::to_owned).collect()))
                .collect()
        };
        let folders = &self.folders;
        records.into_iter().filter_map(|(record, users)| missing_layer(folders, &record, users)).collect()
    }

    /// Moves an unowned folder to the trash. The locks are those under which folders are added to the store.
    fn discard_unowned(self: &Arc<Self>, folder: &Unowned) -> Result<(), Error> {
        let layer = match folder.kind {
            UnownedKind::Layer => name_of(&folder.path).parse::<LayerKey>().ok(),
            _ => None,
        };
        let layer = layer.map(|key| self.in_progress.layer(&key));
        let _placing = layer.as_ref().map(|layer| layer.placing.blocking_lock());
        let _records = (folder.kind == UnownedKind::Image).then(|| self.records.blocking_lock());
        if self.is_used(folder) {
            return Ok(());
        }
        self.move_to_trash(&folder.path, DiskUsage::default())
    }
}

/// Returns the disk usage of a file or folder in bytes, counted as by `du`. A folder is measured by descriptors only.
///
/// # Errors
/// It cannot be read.
pub fn disk_usage(path: &Path) -> Result<u64, Error> {
    use std::os::unix::fs::MetadataExt as _;
    match fs::symlink_metadata(path) {
        Ok(stat) if stat.is_dir() => super::walk::measure(path).map(|usage| usage.bytes),
        Ok(stat) => Ok(stat.blocks().saturating_mul(super::walk::BLOCK)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(Error::io("measure", path, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Options;
    use super::*;

    fn plant(root: &Path) -> Vec<PathBuf> {
        let key = LayerKey::Diff(Digest::of(crate::digest::Algorithm::Sha256, b"no image has this layer"));
        let folders = ["tmp/old", "trash/old", "images/sha256-77"].map(|name| root.join(name));
        let planted: Vec<_> =
            [root.join("layers").join(key.file_name())].into_iter().chain(folders).collect();
        for folder in &planted {
            fs::create_dir_all(folder).unwrap();
            fs::write(folder.join("file"), vec![7; 10_000]).unwrap();
        }
        planted
    }

    fn paths(mut found: Vec<Unowned>) -> Vec<PathBuf> {
        found.sort_by(|left, right| left.path.cmp(&right.path));
        found.into_iter().map(|folder| folder.path).collect()
    }

    #[tokio::test]
    async fn folders_without_a_record_are_found_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let store = ImageStore::open(Options::new(root.path())).await.unwrap();
        assert_eq!(store.check_folders().await.unwrap(), Checked::default());
        let staging = super::super::StagingFolder::new(store.inner()).unwrap();
        let mut planted = plant(root.path());
        planted.sort();
        let found = store.check_folders().await.unwrap().unowned;
        assert_eq!(paths(found.clone()), planted, "a staging folder in use is not listed");
        assert!(disk_usage(&planted[0]).unwrap() >= 10_000);
        for folder in &found {
            store.discard(folder).await.unwrap();
        }
        assert!(staging.path().exists());
        assert_eq!(store.check_folders().await.unwrap(), Checked::default());
        store.wait_for_deletions(Duration::from_secs(60)).await;
        assert_eq!(fs::read_dir(root.path().join("trash")).unwrap().count(), 0);
    }

    #[test]
    fn a_closed_store_is_only_read() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(check_closed(&root.path().join("missing")).unwrap(), Checked::default());
        assert!(!root.path().join("missing").exists());
        let mut planted = plant(root.path());
        planted.sort();
        assert_eq!(paths(check_closed(root.path()).unwrap().unowned), planted);
        assert!(planted.iter().all(|folder| folder.exists()));
    }
}
