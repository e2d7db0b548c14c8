//! The jobs of the store's background threads.

use std::path::PathBuf;

use super::layer_key::LayerKey;
use crate::digest::Digest;

/// A job of the thread that deletes folders (`reaper`).
#[derive(Debug, PartialEq)]
pub(super) enum DeletionJob {
    /// Delete a folder that is not part of the store.
    Delete(PathBuf),
    /// Remove layers, unless they have users again.
    Collect(Vec<LayerKey>),
    /// Remove an image that was removed while it was in use.
    Purge(Digest),
    /// Retry deletions that failed.
    Retry,
}

/// A job of the thread that reads whole layers (`marker`).
#[derive(Debug)]
pub(super) enum ReadingJob {
    /// Record the digest of a layer's files.
    Digest(LayerKey),
    /// Sync an image that an earlier daemon has recorded before its layers were on the disk.
    Sync(Digest),
    /// Release free memory to the system.
    ReleaseMemory,
}
