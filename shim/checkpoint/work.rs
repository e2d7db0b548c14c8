//! The folder in which a checkpoint is assembled: `checkpoint` in the folder of its container. A helper process writes to it
//! and holds a lock on it, so that a daemon that was started meanwhile waits for the helper before it removes the folder:
//! CRIU must never be interrupted, because it would leave its own code in the processes of the container.

use std::fs::{self, File};
use std::io;
use std::ops::Deref;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::folder::CheckpointFolder;
use crate::error::CriError;
use crate::store::file;

/// CRIU's log of a dump.
pub const DUMP_LOG: &str = "dump.log";
/// CRIU's statistics of a dump.
pub const DUMP_STATISTICS: &str = "stats-dump";
/// The changes of the root filesystem.
pub const ROOTFS_DIFF: &str = "rootfs-diff.tar";
/// The paths of the root filesystem that were removed.
pub const DELETED_FILES: &str = "deleted.files";

const FOLDER: &str = "checkpoint";
const LOCK: &str = "lock";
/// Exists while the helper has frozen the container.
const FROZEN: &str = "frozen";

/// The work folder of a container's checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointWork {
    folder: CheckpointFolder,
}

impl Deref for CheckpointWork {
    type Target = CheckpointFolder;

    fn deref(&self) -> &CheckpointFolder {
        &self.folder
    }
}

impl CheckpointWork {
    /// The work folder in the folder of a container. It need not exist.
    #[must_use]
    pub fn of_container(folder: &Path) -> Self {
        Self::at(folder.join(FOLDER))
    }

    /// The work folder at a path.
    #[must_use]
    pub fn at(folder: PathBuf) -> Self {
        Self { folder: CheckpointFolder::new(folder) }
    }

    /// Creates the folder, empty except for its lock.
    ///
    /// # Errors
    /// An earlier one cannot be removed, or the folder cannot be created.
    pub fn create(&self) -> Result<(), CriError> {
        self.remove()?;
        file::make_private_folder(&self.images())?;
        let failed = |error| CriError::internal("create the lock of a checkpoint", error);
        File::create(self.file(LOCK)).map(drop).map_err(failed)
    }

    /// Takes the lock, and waits for the helper that holds it. None if the folder has been removed meanwhile.
    ///
    /// # Errors
    /// The lock cannot be opened or taken.
    pub fn lock(&self) -> io::Result<Option<File>> {
        let lock = match File::open(self.file(LOCK)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        flock(&lock, FlockOperation::LockExclusive)?;
        let linked = lock.metadata()?.nlink() > 0;
        Ok(linked.then_some(lock))
    }

    /// Takes the lock in a helper process.
    ///
    /// # Errors
    /// The lock cannot be taken, or the folder has been removed.
    pub fn lock_for_helper(&self) -> Result<File, String> {
        let lock = self.lock().map_err(|error| format!("failed to lock the work folder: {error}"))?;
        lock.ok_or_else(|| "the daemon was restarted".to_owned())
    }

    /// Records that the container is frozen.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn mark_frozen(&self) -> io::Result<()> {
        File::create(self.file(FROZEN)).map(drop)
    }

    /// Records that the container is no longer frozen.
    pub fn clear_frozen(&self) {
        if let Err(error) = fs::remove_file(self.file(FROZEN)) {
            tracing::warn!(folder = %self.path().display(), %error, "failed to remove the mark of a frozen container");
        }
    }

    /// Whether a helper froze the container and ended without thawing it.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.file(FROZEN).exists()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_was_removed_cannot_be_locked() {
        let parent = tempfile::tempdir().unwrap();
        let work = CheckpointWork::of_container(parent.path());
        assert!(work.lock().unwrap().is_none());
        work.create().unwrap();
        let held = work.lock().unwrap().unwrap();
        let second = work.clone();
        let waiting = std::thread::spawn(move || second.lock().unwrap().is_none());
        std::thread::sleep(std::time::Duration::from_millis(50));
        work.remove().unwrap();
        drop(held);
        assert!(waiting.join().unwrap(), "the waiting process sees that the folder is gone");
        assert!(!work.exists());
    }

    #[test]
    fn a_new_folder_has_nothing_of_an_earlier_checkpoint() {
        let parent = tempfile::tempdir().unwrap();
        let work = CheckpointWork::of_container(parent.path());
        work.create().unwrap();
        work.mark_frozen().unwrap();
        assert!(work.is_frozen());
        work.create().unwrap();
        assert!(!work.is_frozen() && work.images().is_dir());
    }
}
