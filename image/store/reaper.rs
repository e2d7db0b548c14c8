//! Deletes what has been moved away, and collects what nobody uses any more. It waits for no download, no hash and no sync.

use std::path::PathBuf;
use std::sync::Weak;
use std::sync::mpsc::Receiver;

use super::index::LayerKey;
use super::record::DiskUsage;
use super::{Inner, walk};
use crate::digest::Digest;
use crate::error::Error;

/// What the thread is asked to do.
#[derive(Debug, PartialEq)]
pub(super) enum Job {
    /// Delete a folder that nobody knows any more.
    Delete(PathBuf),
    /// Remove layers, unless somebody has come to use them again.
    Collect(Vec<LayerKey>),
    /// Remove an image that was removed while it was in use.
    Purge(Digest),
    /// Try again what could not be deleted.
    Retry,
}

pub(super) fn run(store: &Weak<Inner>, inbox: &Receiver<Job>) {
    let mut failed: Vec<PathBuf> = Vec::new();
    while let Ok(first) = inbox.recv() {
        let Some(inner) = store.upgrade() else { return };
        // Whoever has set a file's flags may have taken them away, or a disk is back: each round tries again.
        let again = std::mem::take(&mut failed);
        for job in std::iter::once(first).chain(inbox.try_iter()) {
            let result = match job {
                Job::Delete(path) => delete(&inner, path, &mut failed),
                Job::Collect(keys) => keys.iter().try_for_each(|key| inner.collect_layer(key)),
                Job::Purge(id) => inner.purge(&id),
                Job::Retry => Ok(()),
            };
            if let Err(error) = result {
                tracing::error!(%error, "clean up the image store");
            }
        }
        for path in again {
            if let Err(error) = delete(&inner, path, &mut failed) {
                tracing::debug!(%error, "clean up the image store again");
            }
        }
        inner.trash.set_stuck(!failed.is_empty());
    }
}

/// Deletes a folder or file for good. What cannot be deleted goes to `failed`, and keeps nothing else from it.
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
            Ok(()) => inner.trash.forget(&path),
            Err(error) => {
                failure = failure.or(Some(error));
                failed.push(path);
            }
        }
    }
    failure.map_or(Ok(()), Err)
}
