//! The store's one background thread: deletes what has been moved away, and makes layers last. It sleeps unless it is
//! asked.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, syncfs};

use super::index::LayerKey;
use super::record::Synced;
use super::tree_digest::tree_digest;
use super::walk::{self, measure, measure_patch};
use super::{Inner, folders};
use crate::digest::Digest;
use crate::error::Error;

/// How often it is looked whether what waits can be done.
const LOOK: Duration = Duration::from_millis(200);
/// How long it waits at most.
const LONGEST: Duration = Duration::from_secs(30);

/// What the thread is asked to do.
#[derive(Debug, PartialEq)]
pub(super) enum Job {
    /// Delete a folder that nobody knows any more.
    Delete(PathBuf),
    /// Remove layers, unless somebody has come to use them again.
    Collect(Vec<LayerKey>),
    /// Remove an image that was removed while it was in use.
    Purge(Digest),
    /// Bring a layer's content to the disk, and note that.
    Sync(LayerKey),
    /// Bring to the disk what is said of images.
    SyncRecords,
    /// Note the digest of a layer's files.
    Digest(LayerKey),
    /// Give memory back that is free again.
    GiveBack,
}

/// Work that takes memory. With its end that is given back to the system: an allocator keeps what it has once had.
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
            inner.reaper.send(Job::GiveBack);
        }
    }
}

/// The way to the thread, which ends when the last store is dropped.
#[derive(Debug)]
pub(super) struct Reaper {
    jobs: Mutex<Sender<Job>>,
}

impl Reaper {
    pub(super) fn start(store: Weak<Inner>) -> Result<Self, Error> {
        let (jobs, inbox) = channel();
        std::thread::Builder::new()
            .name("berth-image".to_owned())
            .spawn(move || run(&store, &inbox))
            .map_err(|error| Error::internal("start the image store's thread", error))?;
        Ok(Self { jobs: Mutex::new(jobs) })
    }

    /// A way that leads nowhere, for a store that could not be opened.
    pub(super) fn nobody() -> Self {
        Self { jobs: Mutex::new(channel().0) }
    }

    pub(super) fn send(&self, job: Job) {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(job) = jobs.send(job) {
            tracing::error!(?job, "the image store's thread has ended");
        }
    }
}

fn run(store: &Weak<Inner>, inbox: &Receiver<Job>) {
    let mut later = Later::default();
    let mut spent = false;
    loop {
        let first = if later.is_empty() {
            inbox.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            inbox.recv_timeout(LOOK)
        };
        if first == Err(RecvTimeoutError::Disconnected) {
            return;
        }
        let Some(inner) = store.upgrade() else { return };
        for job in first.ok().into_iter().chain(inbox.try_iter()) {
            let result = match job {
                Job::Delete(path) => delete(&inner, &path),
                Job::Collect(keys) => keys.iter().try_for_each(|key| inner.collect_layer(key)),
                Job::Purge(id) => inner.purge(&id),
                Job::GiveBack => {
                    spent = true;
                    Ok(())
                }
                job @ (Job::Sync(_) | Job::SyncRecords | Job::Digest(_)) => {
                    later.put(job);
                    Ok(())
                }
            };
            if let Err(error) = result {
                tracing::error!(%error, "clean up the image store");
            }
        }
        if later.is_due(&inner) {
            spent = true;
            if let Err(error) = later.work(&inner) {
                tracing::error!(%error, "sync the image store");
            }
        }
        // Not while somebody pulls: what is free is about to be used.
        if spent && later.is_empty() && inner.pulls.is_idle() {
            spent = false;
            (inner.options.give_back)();
        }
    }
}

/// What reads and writes whole layers: it waits while images are pulled, which need the disk and the processors for
/// somebody who waits.
#[derive(Default)]
struct Later {
    since: Option<Instant>,
    fresh: Vec<LayerKey>,
    records: bool,
    digests: Vec<LayerKey>,
}

impl Later {
    fn put(&mut self, job: Job) {
        self.since.get_or_insert_with(Instant::now);
        match job {
            Job::Sync(key) => self.fresh.push(key),
            Job::SyncRecords => self.records = true,
            Job::Digest(key) => self.digests.push(key),
            _ => {}
        }
    }

    fn is_empty(&self) -> bool {
        self.since.is_none()
    }

    fn is_due(&self, inner: &Inner) -> bool {
        self.since.is_some_and(|since| inner.pulls.is_idle() || since.elapsed() > LONGEST)
    }

    /// One sync serves all that has been made by then.
    fn work(&mut self, inner: &Inner) -> Result<(), Error> {
        let Self { fresh, records, digests, .. } = std::mem::take(self);
        if records || !fresh.is_empty() {
            make_last(inner, &fresh)?;
        }
        digests.iter().try_for_each(|key| digest(inner, key))
    }
}

/// Syncs the filesystem and marks the layers: from then on they are trusted after a reboot, too.
fn make_last(inner: &Inner, keys: &[LayerKey]) -> Result<(), Error> {
    let layers = inner.folders.layers();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd =
        rustix::fs::open(&layers, flags, Mode::empty()).map_err(|error| Error::io("open", &layers, error))?;
    syncfs(fd.as_fd()).map_err(|error| Error::io("sync the filesystem of", &layers, error))?;
    for key in keys {
        mark(inner, key, None)?;
        inner.reaper.send(Job::Digest(key.clone()));
    }
    Ok(())
}

/// Notes what a layer's files are, by which a later change shows.
fn digest(inner: &Inner, key: &LayerKey) -> Result<(), Error> {
    match tree_digest(&inner.folders.layer_fs(key)) {
        Ok(tree) => mark(inner, key, Some(tree)),
        // It has been collected meanwhile.
        Err(_) if inner.index().layer(key).is_none() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Writes down that a layer's content is on the disk.
fn mark(inner: &Inner, key: &LayerKey, tree: Option<Digest>) -> Result<(), Error> {
    // It may have been collected meanwhile; its flight keeps a new one of the same name from coming in between.
    let flight = inner.flights.layer(key);
    let _guard = flight.placing.blocking_lock();
    if inner.index().layer(key).is_none() {
        return Ok(());
    }
    let folder = inner.folders.layer(key);
    let marker = folder.join("synced");
    // Counted now: what is delayed has its blocks.
    let count = |path: &Path| match key {
        LayerKey::Diff(_) | LayerKey::Artifact(_) => measure(path),
        LayerKey::Patch(_) => measure_patch(path),
    };
    let mut synced = Synced { usage: count(&folder)?, tree };
    // Twice: the marker is counted as well.
    for _ in 0..2 {
        folders::replace_json(&marker, &synced, false)?;
        synced.usage = count(&folder)?;
    }
    inner.index().set_layer_usage(key, synced.usage);
    Ok(())
}

/// Deletes a folder or file for good.
fn delete(inner: &Inner, path: &Path) -> Result<(), Error> {
    let mut pending = vec![path.to_owned()];
    while let Some(path) = pending.pop() {
        walk::delete(&path, &mut |folder, name| {
            pending.push(inner.folders.discard_at(folder, name)?);
            Ok(())
        })?;
    }
    Ok(())
}
