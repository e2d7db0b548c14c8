//! What has been moved away and is still on the disk. It counts as taken until it is deleted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::reaper::Job;
use super::record::DiskUsage;
use super::walk::measure;
use super::{Inner, usage};
use crate::error::Error;

/// The folders in the trash, with what they take as far as it is known.
#[derive(Debug, Default)]
pub(super) struct Trash {
    entries: Mutex<BTreeMap<PathBuf, DiskUsage>>,
    /// Some of it could not be deleted.
    stuck: AtomicBool,
}

impl Trash {
    pub(super) fn add(&self, path: PathBuf, usage: DiskUsage) {
        self.entries().insert(path, usage);
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
        usage::sum(self.entries().values().copied())
    }

    /// Counts again: of what is large a part may be deleted, and of what an earlier daemon has left nothing is known.
    pub(super) fn measure(&self) {
        let paths: Vec<PathBuf> = self.entries().keys().cloned().collect();
        for path in paths {
            match measure(&path) {
                Ok(usage) => {
                    if let Some(known) = self.entries().get_mut(&path) {
                        *known = usage;
                    }
                }
                Err(error) => tracing::debug!(path = %path.display(), %error, "measure the trash"),
            }
        }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<PathBuf, DiskUsage>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Moves something of the store out of sight and has it deleted. Nothing there is fine.
    pub(super) fn throw_away(&self, path: &Path, usage: DiskUsage) -> Result<(), Error> {
        if let Some(gone) = self.folders.discard(path)? {
            self.trash.add(gone.clone(), usage);
            self.reaper.send(Job::Delete(gone));
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
    async fn what_could_not_be_deleted_counts_and_is_tried_again_when_somebody_looks() {
        let folder = tempfile::tempdir().unwrap();
        let store = ImageStore::open(Options::new(folder.path())).await.unwrap();
        let inner = store.inner();
        // A disk that refuses is not at hand: a folder that the thread has not been told of stands for what it gave up.
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
            assert!(Instant::now() < until, "the thread has another look");
            std::thread::sleep(Duration::from_millis(10));
        }
        inner.reaper.send(Job::Delete(stuck.clone()));
        while store.usage().image.bytes > 0 {
            assert!(Instant::now() < until, "what is deleted does not count");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(!stuck.exists());
    }
}
