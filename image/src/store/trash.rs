//! The trash: folders that were removed from the store and are not deleted yet. They count as used space
//! until they are deleted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Inner;
use super::disk_usage::{DiskUsage, sum};
use super::jobs::DeletionJob;
use super::walk::measure;
use crate::error::Error;

/// The folders in the trash, with their usage as far as it is known.
#[derive(Debug, Default)]
pub(super) struct Trash {
    entries: Mutex<BTreeMap<PathBuf, DiskUsage>>,
    /// A deletion has failed.
    stuck: AtomicBool,
}

impl Trash {
    pub(super) fn add(&self, path: PathBuf, usage: DiskUsage) {
        self.entries().insert(path, usage);
    }

    pub(super) fn contains(&self, path: &Path) -> bool {
        self.entries().contains_key(path)
    }

    pub(super) fn forget(&self, path: &Path) {
        self.entries().remove(path);
    }

    pub(super) fn set_stuck(&self, stuck: bool) {
        self.stuck.store(stuck, Ordering::Relaxed);
    }

    pub(super) fn is_stuck(&self) -> bool {
        self.stuck.load(Ordering::Relaxed)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries().is_empty()
    }

    pub(super) fn usage(&self) -> DiskUsage {
        sum(self.entries().values().copied())
    }

    /// Measures the folders again. A part of a large one may have been deleted, and the usage of those of
    /// earlier daemons is unknown.
    pub(super) fn measure(&self) {
        let paths: Vec<PathBuf> = self.entries().keys().cloned().collect();
        for path in paths {
            match measure(&path) {
                Ok(usage) => {
                    if let Some(entry) = self.entries().get_mut(&path) {
                        *entry = usage;
                    }
                }
                Err(error) => tracing::debug!(path = %path.display(), %error, "failed to measure the trash"),
            }
        }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<PathBuf, DiskUsage>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Moves a folder of the store to the trash and has it deleted. It may be missing.
    pub(super) fn move_to_trash(&self, path: &Path, usage: DiskUsage) -> Result<(), Error> {
        if let Some(moved) = self.folders.discard(path)? {
            self.trash.add(moved.clone(), usage);
            self.reaper.send(DeletionJob::Delete(moved));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::{Duration, Instant};

    use super::super::{ImageStore, Options};
    use super::*;

    #[tokio::test]
    async fn failed_deletions_count_and_are_retried_when_the_usage_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let store = ImageStore::open(Options::new(folder.path())).await.unwrap();
        let inner = store.inner();
        // Simulates a failed deletion by a folder that the thread has not received.
        let stuck = folder.path().join("trash/stuck");
        fs::create_dir(&stuck).unwrap();
        fs::write(stuck.join("file"), vec![1; 1 << 20]).unwrap();
        inner.trash.add(stuck.clone(), DiskUsage::default());
        inner.trash.measure();
        assert!(store.usage().image.bytes >= 1 << 20);
        inner.trash.set_stuck(true);
        drop(store.usage());
        let until = Instant::now() + Duration::from_secs(120);
        while inner.trash.is_stuck() {
            assert!(Instant::now() < until, "the thread did not retry");
            std::thread::sleep(Duration::from_millis(10));
        }
        inner.reaper.send(DeletionJob::Delete(stuck.clone()));
        while store.usage().image.bytes > 0 {
            assert!(Instant::now() < until, "a deleted folder still counts");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(!stuck.exists());
    }
}
