//! The reaper thread: deletes folders in the trash, and collects images and layers without users. It never
//! waits for a download, a digest or a sync.

use std::path::PathBuf;
use std::sync::Weak;
use std::sync::mpsc::Receiver;

use super::disk_usage::DiskUsage;
use super::jobs::DeletionJob;
use super::{Inner, walk};
use crate::error::Error;

pub(super) fn run(store: &Weak<Inner>, inbox: &Receiver<DeletionJob>) {
    let mut failed: Vec<PathBuf> = Vec::new();
    while let Ok(first) = inbox.recv() {
        let Some(inner) = store.upgrade() else { return };
        // Each round retries failed deletions: a file's flags may have been removed, or a disk may be back.
        let retries = std::mem::take(&mut failed);
        for job in std::iter::once(first).chain(inbox.try_iter()) {
            let result = match job {
                DeletionJob::Delete(path) => delete(&inner, path, &mut failed),
                DeletionJob::Collect(keys) => keys.iter().try_for_each(|key| inner.collect_layer(key)),
                DeletionJob::Purge(id) => inner.purge(&id),
                DeletionJob::Retry => Ok(()),
            };
            if let Err(error) = result {
                tracing::error!(%error, "failed to clean up the image store");
            }
        }
        for path in retries {
            if let Err(error) = delete(&inner, path, &mut failed) {
                tracing::debug!(%error, "failed again to clean up the image store");
            }
        }
        inner.trash.set_stuck(!failed.is_empty());
    }
}

/// Deletes a folder or file. Paths that cannot be deleted are added to `failed`; the others are still
/// deleted.
fn delete(inner: &Inner, path: PathBuf, failed: &mut Vec<PathBuf>) -> Result<(), Error> {
    let mut pending = vec![path];
    let mut failure = None;
    while let Some(path) = pending.pop() {
        let deleted = walk::delete(&path, &mut |folder, name| {
            let moved = inner.folders.discard_at(folder, name)?;
            inner.trash.add(moved.clone(), DiskUsage::default());
            pending.push(moved);
            Ok(())
        });
        match deleted {
            Ok(()) => {
                inner.trash.forget(&path);
                inner.staging.forget(&path);
            }
            Err(error) => {
                failure = failure.or(Some(error));
                failed.push(path);
            }
        }
    }
    failure.map_or(Ok(()), Err)
}
