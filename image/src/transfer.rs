//! The transfer of one layer, or of one file of an artifact, from a registry into the store.

use std::io::BufRead;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::artifact::ArtifactFolder;
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::downloads::{Slot, Slots};
use crate::error::{Error, blocking};
use crate::progress::{Pulls, Stage, Tracked};
use crate::registry::{Figures, MIN_RATE, PieceReader, Repository, Watcher};
use crate::step::PullStep;
use crate::store::{Creation, Inner, LayerKey, LayerRecord, Lease, StagingFolder};
use crate::unpack::{self, Budget, TreePath};

/// The time for which the layers of a failed pull are kept, so that the next attempt continues from there.
/// The kubelet waits at most five minutes between two attempts.
const KEEP_FINISHED: Duration = Duration::from_secs(600);
/// The most pieces of a layer between the socket and the thread that unpacks it.
const PIECES: usize = 8;

/// The transfer of one layer into the store.
#[derive(Clone, Copy)]
pub(crate) struct Download<'a> {
    pub(crate) inner: &'a Arc<Inner>,
    pub(crate) repository: &'a Repository,
    pub(crate) layer: &'a Descriptor,
    pub(crate) diff_id: &'a Digest,
    pub(crate) budget: &'a Arc<Budget>,
    pub(crate) tracked: &'a Tracked,
    pub(crate) slots: &'a Slots,
    pub(crate) finished: &'a Finished,
}

/// The finished layers of a pull. Unless they are released, they are kept for a while after the pull: if it
/// was cancelled or another layer failed, it will be tried again.
#[derive(Default)]
pub(crate) struct Finished(Mutex<Vec<Lease>>);

impl Finished {
    fn add(&self, lease: Option<Lease>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(lease);
    }

    pub(crate) fn release(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Drop for Finished {
    fn drop(&mut self) {
        let leases = std::mem::take(self.0.get_mut().unwrap_or_else(PoisonError::into_inner));
        if let (false, Ok(runtime)) = (leases.is_empty(), Handle::try_current()) {
            runtime.spawn(async move {
                tokio::time::sleep(KEEP_FINISHED).await;
                drop(leases);
            });
        }
    }
}

impl Download<'_> {
    pub(crate) async fn lease(self) -> Result<Lease, Error> {
        let key = LayerKey::Diff(self.diff_id.clone());
        let fetch = |creation, slot| self.fetch(creation, slot);
        let lease = self.inner.lease_or_create(&key, Some(self.slots), fetch).await;
        self.inner.pulls.count(self.tracked, lease.is_ok());
        let lease = lease?;
        PullStep::Placed.reach();
        self.tracked.set(Stage::Done);
        self.finished.add(self.inner.lease_again(&key));
        Ok(lease)
    }

    async fn fetch(
        self,
        creation: Arc<Creation>,
        slot: Option<Slot>,
    ) -> Result<(Arc<StagingFolder>, LayerRecord), Error> {
        PullStep::Receive.reach();
        self.tracked.set(Stage::Receiving);
        let slow_handler =
            SlowHandler { blob: self.layer, creation: &creation, slot: slot.as_ref(), budget: self.budget };
        let mut first = 0;
        loop {
            let (host, result) = self.attempt(first, slow_handler).await;
            match result {
                // Corrupt content of one host is not a property of the next.
                Err(error @ Error::Corrupt { .. }) if host + 1 < self.repository.hosts() => {
                    tracing::warn!(%error, "content from a mirror is corrupt, trying the next host");
                    first = host + 1;
                }
                result => {
                    if result.is_ok() {
                        PullStep::Unpacked.reach();
                    }
                    return result;
                }
            }
        }
    }

    /// Fetches and unpacks from the hosts at or after index `first`. Also returns the index of the last host.
    async fn attempt(
        self,
        first: usize,
        slow_handler: SlowHandler<'_>,
    ) -> (usize, Result<(Arc<StagingFolder>, LayerRecord), Error>) {
        let what = format!("layer {}@{}", self.repository.name(), self.layer.digest);
        let (sink, pieces) = mpsc::channel(PIECES);
        let inner = self.inner.clone();
        let (diff_id, budget) = (self.diff_id.clone(), self.budget.clone());
        let unpacking = tokio::spawn(blocking("unpack a layer", move || {
            unpack_layer(&inner, &what, PieceReader::new(pieces), &diff_id, &budget)
        }));
        let on_slow = |figures| slow_handler.on_slow(figures);
        let watcher = Watcher { received: &self.tracked.received, on_slow: &on_slow };
        let transfer = self.repository.transfer(self.layer, first, &sink, &watcher).await;
        drop(sink);
        let unpacked = unpacking.await.unwrap_or_else(|error| Err(Error::internal("unpack a layer", error)));
        let result = match (transfer.result, unpacked) {
            // The error of the reader is then only that the transfer broke off.
            (Err(error), _) | (_, Err(error)) => Err(error),
            (Ok(true), Ok(unpacked)) => Ok(unpacked),
            (Ok(false), Ok(_)) => {
                let what = format!("layer {}", self.layer.digest);
                Err(Error::corrupt(what, "data after the end of the compressed archive"))
            }
        };
        (transfer.endpoint, result)
    }
}

/// The resources that others may wait for while a blob is transferred.
#[derive(Clone, Copy)]
struct SlowHandler<'a> {
    blob: &'a Descriptor,
    creation: &'a Creation,
    slot: Option<&'a Slot>,
    budget: &'a Budget,
}

impl SlowHandler<'_> {
    /// Handles a slow transfer. It continues, but others do not wait for it: its slot and its layer are
    /// released. The transfer is cancelled if so many are slow that no other can begin, or if others wait for
    /// the memory of its image.
    fn on_slow(self, figures: Figures) -> Result<(), Error> {
        let Self { blob: Descriptor { digest, size, .. }, creation, slot, budget } = self;
        let slow = format!("{figures} of {size} bytes, fewer than {MIN_RATE} bytes/s");
        if slot.is_some_and(Slot::blocks_others) || budget.blocks_others() {
            let why = format!("the transfer is slow and others wait for its slot: {slow}");
            return Err(Error::unavailable(format!("blob {digest}"), why));
        }
        tracing::info!(%digest, "transfer is slow, others overtake it: {slow}");
        creation.set_slow();
        if let Some(slot) = slot {
            slot.release();
        }
        Ok(())
    }
}

/// The transfer of one blob of an artifact into its file.
pub(crate) struct BlobFile<'a> {
    pub(crate) repository: &'a Repository,
    pub(crate) blob: &'a Descriptor,
    pub(crate) name: TreePath,
    pub(crate) folder: Arc<ArtifactFolder>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) tracked: Arc<Tracked>,
    pub(crate) slots: &'a Slots,
    pub(crate) creation: &'a Creation,
    pub(crate) pulls: &'a Pulls,
}

impl BlobFile<'_> {
    pub(crate) async fn fetch(self) -> Result<(), Error> {
        let slot = self.slots.next().await?;
        self.tracked.set(Stage::Receiving);
        let slow_handler =
            SlowHandler { blob: self.blob, creation: self.creation, slot: Some(&slot), budget: &self.budget };
        let mut first = 0;
        loop {
            let (host, result) = self.attempt(first, slow_handler).await;
            match result {
                Err(error @ Error::Corrupt { .. }) if host + 1 < self.repository.hosts() => {
                    tracing::warn!(%error, "content from a mirror is corrupt, trying the next host");
                    first = host + 1;
                }
                result => {
                    self.pulls.count(&self.tracked, result.is_ok());
                    self.tracked.set(Stage::Done);
                    return result;
                }
            }
        }
    }

    async fn attempt(&self, first: usize, slow_handler: SlowHandler<'_>) -> (usize, Result<(), Error>) {
        let what = format!("blob {}@{}", self.repository.name(), self.blob.digest);
        let (sink, pieces) = mpsc::channel(PIECES);
        let (name, folder, budget) = (self.name.clone(), self.folder.clone(), self.budget.clone());
        let writing = tokio::spawn(blocking("write a file", move || {
            folder.write(&what, &name, &mut PieceReader::new(pieces), &budget)
        }));
        let on_slow = |figures| slow_handler.on_slow(figures);
        let watcher = Watcher { received: &self.tracked.received, on_slow: &on_slow };
        let transfer = self.repository.transfer(self.blob, first, &sink, &watcher).await;
        drop(sink);
        let written = writing.await.unwrap_or_else(|error| Err(Error::internal("write a file", error)));
        (transfer.endpoint, transfer.result.and(written))
    }
}

/// Unpacks a layer into a staging folder and checks its diff id. It blocks.
pub(crate) fn unpack_layer(
    inner: &Arc<Inner>,
    what: &str,
    source: impl BufRead,
    diff_id: &Digest,
    budget: &Budget,
) -> Result<(Arc<StagingFolder>, LayerRecord), Error> {
    let staging = StagingFolder::new(inner)?;
    staging.create_fs()?;
    let fs = staging.fs();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(&fs, flags, Mode::empty()).map_err(|error| Error::io("open", &fs, error))?;
    let recipe = staging.recipe();
    let recipe = std::fs::File::create(&recipe).map_err(|error| Error::io("create", &recipe, error))?;
    let outcome = unpack::extract(what, source, root, diff_id.algorithm(), budget, Some(recipe))?;
    if outcome.diff_id != *diff_id {
        let why = format!("diff id is {} instead of {diff_id}", outcome.diff_id);
        return Err(Error::corrupt(what, why));
    }
    let record = LayerRecord {
        implicit: outcome.implicit,
        links: outcome.links,
        length: Some(outcome.length),
        ..LayerRecord::default()
    };
    Ok((Arc::new(staging), record))
}
