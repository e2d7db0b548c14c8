//! The marker thread, which reads whole layers. It records the digest of a layer's files, by which later
//! changes are detected. It waits while images are pulled, since pulls need the disk and the processors. It
//! stops when its layer is removed.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::fs::fstat;

use super::Inner;
use super::disk_usage::{DiskUsage, sum};
use super::durable::{durable_replace_at, open_folder};
use super::folders::read_json;
use super::jobs::ReadingJob;
use super::layer_key::LayerKey;
use super::record::Synced;
use super::tree_digest::tree_digest;
use super::walk::{BLOCK, measure, measure_patch};
use crate::digest::Digest;
use crate::error::Error;

/// The interval at which the thread checks whether pending work can start.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// The longest time for which pending work waits.
const MAX_DELAY: Duration = Duration::from_secs(30);
/// The file in a layer's folder which states that its content is on the disk, and its digest.
pub(super) const MARKER: &str = "synced";

/// Marks work that uses memory. When it is dropped, free memory is released to the system: an allocator keeps
/// freed memory.
#[derive(Debug)]
pub(crate) struct MemoryUser(Weak<Inner>);

impl MemoryUser {
    pub(crate) fn new(inner: &Arc<Inner>) -> Self {
        Self(Arc::downgrade(inner))
    }
}

impl Drop for MemoryUser {
    fn drop(&mut self) {
        if let Some(inner) = self.0.upgrade() {
            inner.marker.send(ReadingJob::ReleaseMemory);
        }
    }
}

#[derive(Default)]
struct Pending {
    since: Option<Instant>,
    images: Vec<Digest>,
    layers: Vec<LayerKey>,
    release_memory: bool,
}

impl Pending {
    fn add(&mut self, job: ReadingJob) {
        match job {
            ReadingJob::ReleaseMemory => {
                self.release_memory = true;
                return;
            }
            ReadingJob::Digest(key) => self.layers.push(key),
            ReadingJob::Sync(id) => self.images.push(id),
        }
        self.since.get_or_insert_with(Instant::now);
    }

    fn is_due(&self, inner: &Inner) -> bool {
        self.since.is_some_and(|since| inner.pulls.is_idle() || since.elapsed() > MAX_DELAY)
    }
}

pub(super) fn run(store: &Weak<Inner>, inbox: &Receiver<ReadingJob>) {
    let mut pending = Pending::default();
    loop {
        let first = if pending.since.is_none() && !pending.release_memory {
            inbox.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            inbox.recv_timeout(POLL_INTERVAL)
        };
        if matches!(first, Err(RecvTimeoutError::Disconnected)) {
            return;
        }
        first.into_iter().chain(inbox.try_iter()).for_each(|job| pending.add(job));
        let Some(inner) = store.upgrade() else { return };
        if pending.is_due(&inner) {
            let Pending { images, layers, .. } = std::mem::take(&mut pending);
            pending.release_memory = true;
            sync(&inner, &images);
            // Reading takes long. The store may be closed meanwhile.
            drop(inner);
            layers.iter().for_each(|key| digest(store, key));
            continue;
        }
        // Not while a pull runs: the free memory will be used.
        if pending.release_memory && inner.pulls.is_idle() {
            pending.release_memory = false;
            (inner.options.release_memory)();
        }
    }
}

/// Syncs the images. One sync covers all of them.
fn sync(inner: &Inner, images: &[Digest]) {
    if images.is_empty() {
        return;
    }
    let synced =
        inner.syncs.all_blocking().and_then(|()| images.iter().try_for_each(|id| inner.mark_synced(id)));
    if let Err(error) = synced {
        tracing::error!(%error, "failed to sync images");
    }
}

fn digest(store: &Weak<Inner>, key: &LayerKey) {
    let digested =
        OpenLayer::open(store, key).map(|layer| layer.map_or(Ok(()), |layer| layer.record_digest()));
    if let Err(error) = digested.and_then(|result| result) {
        tracing::error!(%error, "failed to record the digest of a layer");
    }
}

/// A layer that is being read.
struct OpenLayer<'a> {
    store: &'a Weak<Inner>,
    key: &'a LayerKey,
    folder: OwnedFd,
    inode: u64,
}

impl<'a> OpenLayer<'a> {
    fn open(store: &'a Weak<Inner>, key: &'a LayerKey) -> Result<Option<Self>, Error> {
        let Some(inner) = store.upgrade() else { return Ok(None) };
        if inner.index().layer(key).is_none() {
            return Ok(None);
        }
        let path = inner.folders.layer(key);
        let folder = open_folder(&path)?;
        let stat = fstat(&folder).map_err(|error| Error::io("read", &path, error))?;
        Ok(Some(Self { store, key, folder, inode: stat.st_ino }))
    }

    /// Returns whether the folder still belongs to the layer and is on the disk. Otherwise nothing is
    /// recorded.
    fn is_current(&self) -> bool {
        let Some(inner) = self.store.upgrade() else { return false };
        let index = inner.index();
        index.layer(self.key).is_some_and(|layer| layer.durable && layer.inode == self.inode)
    }

    fn record_digest(&self) -> Result<(), Error> {
        let Some((path, fs)) = self
            .store
            .upgrade()
            .map(|inner| (inner.folders.layer(self.key), inner.folders.layer_fs(self.key)))
        else {
            return Ok(());
        };
        if !self.is_current() {
            return Ok(());
        }
        let tree = match tree_digest(&fs, &|| !self.is_current()) {
            Ok(Some(tree)) => tree,
            Ok(None) => return Ok(()),
            // The layer was collected meanwhile.
            Err(_) if !self.is_current() => return Ok(()),
            Err(error) => return Err(error),
        };
        // Measured here, when delayed allocations have their blocks.
        let usage = match self.key {
            LayerKey::Diff(_) | LayerKey::Artifact(_) => measure(&path)?,
            LayerKey::Patch(_) => measure_patch(&path)?,
        };
        let usage = usage.without(marker_usage(&path));
        let Some(inner) = self.store.upgrade().filter(|_| self.is_current()) else { return Ok(()) };
        let synced = Synced { usage, tree: Some(tree) };
        durable_replace_at(&self.folder, &path, MARKER, &synced)?;
        let usage = sum([synced.usage, marker_usage(&path)].into_iter());
        inner.index().set_digested(self.key, usage);
        Ok(())
    }
}

/// Reads the marker in a layer's folder. The usage includes the marker itself.
pub(super) fn read(folder: &Path) -> Result<Synced, Error> {
    let synced: Synced = read_json(&folder.join(MARKER))?;
    Ok(Synced { usage: sum([synced.usage, marker_usage(folder)].into_iter()), ..synced })
}

/// Returns the usage of the marker, which it cannot contain itself.
fn marker_usage(folder: &Path) -> DiskUsage {
    let stat = std::fs::symlink_metadata(folder.join(MARKER));
    stat.map_or(DiskUsage::default(), |stat| DiskUsage { bytes: stat.blocks() * BLOCK, inodes: 1 })
}
