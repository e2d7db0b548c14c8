//! A folder with a checkpoint, in the folder of a container.

use std::path::{Path, PathBuf};

use crate::store::file::{self, FileError};

/// The folder of CRIU's images. This name and the next ones are those of containerd, CRI-O and podman.
pub const IMAGES: &str = "checkpoint";

/// The path of a folder with a checkpoint. Only root can enter the folder: it contains the memory of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointFolder(PathBuf);

impl CheckpointFolder {
    /// The folder need not exist.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Returns its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Returns the path of a file in the folder.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Returns the folder of CRIU's images.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.file(IMAGES)
    }

    /// Whether there is such a folder.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.0.exists()
    }

    /// Removes the folder with its content. It may be missing.
    ///
    /// # Errors
    /// A part cannot be removed.
    pub fn remove(&self) -> Result<(), FileError> {
        file::remove_folder(&self.0)
    }
}
