//! The thread that reads whole layers: it notes what a layer's files are, by which a later change shows. It waits while
//! images are pulled, which need the disk and the processors for somebody who waits, and leaves a layer that is removed
//! meanwhile.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::fs::fstat;

use super::Inner;
use super::durable::{durable_replace_at, open_folder};
use super::folders::read_json;
use super::index::LayerKey;
use super::record::{DiskUsage, Synced};
use super::tree_digest::tree_digest;
use super::usage::sum;
use super::walk::{BLOCK, measure, measure_patch};
use crate::digest::Digest;
use crate::error::Error;

/// How often it is looked whether what waits can be done.
const LOOK: Duration = Duration::from_millis(200);
/// How long it waits at most.
const LONGEST: Duration = Duration::from_secs(30);
/// The file in a layer's folder that says that its content is on the disk, and what it is.
pub(super) const MARKER: &str = "synced";

/// What the thread is asked to do.
#[derive(Debug)]
pub(super) enum Job {
    /// Note the digest of a layer's files.
    Digest(LayerKey),
    /// Bring to the disk an image that an earlier daemon has recorded before its layers were there.
    Settle(Digest),
    /// Give memory back that is free again.
    GiveBack,
}

/// Somebody whose work takes memory. With its end that is given back to the system: an allocator keeps what it has once had.
#[derive(Debug)]
pub(crate) struct Spender(Weak<Inner>);

impl Spender {
    pub(crate) fn new(inner: &Arc<Inner>) -> Self {
        Self(Arc::downgrade(inner))
    }
}

impl Drop for Spender {
    fn drop(&mut self) {
        if let Some(inner) = self.0.upgrade() {
            inner.marker.send(Job::GiveBack);
        }
    }
}

#[derive(Default)]
struct Waiting {
    since: Option<Instant>,
    images: Vec<Digest>,
    layers: Vec<LayerKey>,
    spent: bool,
}

impl Waiting {
    fn put(&mut self, job: Job) {
        match job {
            Job::GiveBack => {
                self.spent = true;
                return;
            }
            Job::Digest(key) => self.layers.push(key),
            Job::Settle(id) => self.images.push(id),
        }
        self.since.get_or_insert_with(Instant::now);
    }

    fn is_due(&self, inner: &Inner) -> bool {
        self.since.is_some_and(|since| inner.pulls.is_idle() || since.elapsed() > LONGEST)
    }
}

pub(super) fn run(store: &Weak<Inner>, inbox: &Receiver<Job>) {
    let mut waiting = Waiting::default();
    loop {
        let first = if waiting.since.is_none() && !waiting.spent {
            inbox.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            inbox.recv_timeout(LOOK)
        };
        if matches!(first, Err(RecvTimeoutError::Disconnected)) {
            return;
        }
        first.into_iter().chain(inbox.try_iter()).for_each(|job| waiting.put(job));
        let Some(inner) = store.upgrade() else { return };
        if waiting.is_due(&inner) {
            let Waiting { images, layers, .. } = std::mem::take(&mut waiting);
            waiting.spent = true;
            settle(&inner, &images);
            // Reading takes long: the store may end meanwhile.
            drop(inner);
            layers.iter().for_each(|key| digest(store, key));
            continue;
        }
        // Not while somebody pulls: what is free is about to be used.
        if waiting.spent && inner.pulls.is_idle() {
            waiting.spent = false;
            (inner.options.give_back)();
        }
    }
}

/// One sync serves all that has been made by then.
fn settle(inner: &Inner, images: &[Digest]) {
    if images.is_empty() {
        return;
    }
    let settled = inner.syncs.all_blocking().and_then(|()| images.iter().try_for_each(|id| inner.settle(id)));
    if let Err(error) = settled {
        tracing::error!(%error, "bring images to the disk");
    }
}

fn digest(store: &Weak<Inner>, key: &LayerKey) {
    let digested = Layer::open(store, key).map(|layer| layer.map_or(Ok(()), |layer| layer.note()));
    if let Err(error) = digested.and_then(|result| result) {
        tracing::error!(%error, "note the digest of a layer");
    }
}

/// A layer that is being read.
struct Layer<'a> {
    store: &'a Weak<Inner>,
    key: &'a LayerKey,
    folder: OwnedFd,
    inode: u64,
}

impl<'a> Layer<'a> {
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

    /// Whether the folder is still the layer's, and on the disk: only of such a one is anything noted.
    fn is_there(&self) -> bool {
        let Some(inner) = self.store.upgrade() else { return false };
        let index = inner.index();
        index.layer(self.key).is_some_and(|layer| layer.durable && layer.inode == self.inode)
    }

    fn note(&self) -> Result<(), Error> {
        let Some((path, fs)) = self
            .store
            .upgrade()
            .map(|inner| (inner.folders.layer(self.key), inner.folders.layer_fs(self.key)))
        else {
            return Ok(());
        };
        if !self.is_there() {
            return Ok(());
        }
        let tree = match tree_digest(&fs, &|| !self.is_there()) {
            Ok(Some(tree)) => tree,
            Ok(None) => return Ok(()),
            // It has been collected meanwhile.
            Err(_) if !self.is_there() => return Ok(()),
            Err(error) => return Err(error),
        };
        // Counted now: what is delayed has its blocks.
        let usage = match self.key {
            LayerKey::Diff(_) | LayerKey::Artifact(_) => measure(&path)?,
            LayerKey::Patch(_) => measure_patch(&path)?,
        };
        let usage = usage.without(own(&path));
        let Some(inner) = self.store.upgrade().filter(|_| self.is_there()) else { return Ok(()) };
        let synced = Synced { usage, tree: Some(tree) };
        durable_replace_at(&self.folder, &path, MARKER, &synced)?;
        let usage = sum([synced.usage, own(&path)].into_iter());
        inner.index().set_digested(self.key, usage);
        Ok(())
    }
}

/// What the marker in a layer's folder says, with what it takes itself.
pub(super) fn read(folder: &Path) -> Result<Synced, Error> {
    let synced: Synced = read_json(&folder.join(MARKER))?;
    Ok(Synced { usage: sum([synced.usage, own(folder)].into_iter()), ..synced })
}

/// What the marker takes, which it cannot say itself.
fn own(folder: &Path) -> DiskUsage {
    let stat = std::fs::symlink_metadata(folder.join(MARKER));
    stat.map_or(DiskUsage::default(), |stat| DiskUsage { bytes: stat.blocks() * BLOCK, inodes: 1 })
}
