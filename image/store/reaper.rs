//! The store's one background thread: deletes what has been moved away, makes layers last, and measures. It sleeps
//! unless it is asked.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError, Weak};

use rustix::fs::{Mode, OFlags, syncfs};

use super::index::LayerKey;
use super::record::Synced;
use super::tree_digest::tree_digest;
use super::walk::{self, measure, measure_patch};
use super::{Inner, folders};
use crate::digest::Digest;
use crate::error::Error;

/// What the thread is asked to do.
#[derive(Debug)]
pub(super) enum Job {
    /// Delete a folder that nobody knows any more.
    Delete(PathBuf),
    /// Remove layers, unless somebody has come to use them again.
    Collect(Vec<LayerKey>),
    /// Remove an image that was removed while it was in use.
    Purge(Digest),
    /// Bring a layer's content to the disk, and note that.
    Sync(LayerKey),
    /// Note the digest of a layer's files.
    Digest(LayerKey),
    /// Count again what containers have written.
    MeasureContainers,
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
    while let Ok(first) = inbox.recv() {
        // One sync serves all layers that have been made by then.
        let mut fresh = Vec::new();
        for job in std::iter::once(first).chain(inbox.try_iter()) {
            let Some(inner) = store.upgrade() else {
                return;
            };
            let result = match job {
                Job::Delete(path) => delete(&inner, &path),
                Job::Collect(keys) => keys.iter().try_for_each(|key| inner.collect_layer(key)),
                Job::Purge(id) => inner.purge(&id),
                Job::Sync(key) => {
                    fresh.push(key);
                    Ok(())
                }
                Job::Digest(key) => digest(&inner, &key),
                Job::MeasureContainers => {
                    inner.measure_containers();
                    Ok(())
                }
            };
            if let Err(error) = result {
                tracing::error!(%error, "clean up the image store");
            }
        }
        if let Some(inner) = store.upgrade()
            && !fresh.is_empty()
            && let Err(error) = make_last(&inner, &fresh)
        {
            tracing::error!(%error, "sync the image store");
        }
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
    let _guard = flight.blocking_lock();
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
