//! Staging folders, in which layers and images are created before they are renamed into place.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use super::Inner;
use super::folders::{RECIPE, create_private};
use super::jobs::DeletionJob;
use crate::error::Error;

/// A folder in which a layer or an image is created. Unless it becomes part of the store, it is deleted with
/// its last owner. The thread that writes into it is one of its owners.
#[derive(Debug)]
pub(crate) struct StagingFolder {
    store: Weak<Inner>,
    path: PathBuf,
}

impl StagingFolder {
    pub(crate) fn new(inner: &Arc<Inner>) -> Result<Self, Error> {
        let path = inner.folders.new_tmp();
        inner.staging.add(&path);
        create_private(&path).inspect_err(|_| inner.staging.forget(&path))?;
        Ok(Self { store: Arc::downgrade(inner), path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the folder that becomes the layer's content.
    pub(crate) fn fs(&self) -> PathBuf {
        self.path.join("fs")
    }

    /// Returns the file of the recipe, by which the layer's archive can be rebuilt.
    pub(crate) fn recipe(&self) -> PathBuf {
        self.path.join(RECIPE)
    }

    /// Creates that folder, as the root of a filesystem.
    pub(crate) fn create_fs(&self) -> Result<(), Error> {
        let fs = self.fs();
        fs::create_dir(&fs).map_err(|error| Error::io("create", &fs, error))?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&fs, mode).map_err(|error| Error::io("change the mode of", &fs, error))
    }
}

impl Drop for StagingFolder {
    fn drop(&mut self) {
        // After the rename the path does not exist. Folders that a crash leaves are removed at the next open.
        if let Some(inner) = self.store.upgrade() {
            inner.reaper.send(DeletionJob::Delete(self.path.clone()));
        }
    }
}
