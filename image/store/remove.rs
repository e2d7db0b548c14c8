//! Removing images, and collecting what nobody uses any more.

use std::sync::Arc;

use super::index::LayerKey;
use super::{ImageStore, Inner};
use crate::digest::Digest;
use crate::error::{Error, blocking};

impl ImageStore {
    /// Removes an image with all its names. Where containers or holds use it, it is out of sight at once, and its layers
    /// go with the last of them. Whether there was such an image.
    ///
    /// # Errors
    /// The store's files cannot be changed.
    pub async fn remove(&self, name: &str) -> Result<bool, Error> {
        let inner = self.inner.clone();
        let name = name.to_owned();
        // On its own: a caller that gives up does not leave half a removal.
        let task = tokio::spawn(async move {
            let guard = inner.records.lock().await;
            let found = inner.resolve(&name).map(|image| image.id.clone());
            let Some(id) = found.or_else(|| inner.index().resolve_damaged(&name)) else {
                return Ok(false);
            };
            let worker = inner.clone();
            blocking("remove an image", move || {
                let known =
                    worker.index().entry(&id).map(|entry| (entry.record.clone(), entry.image.clone()));
                if let Some((mut record, image)) = known {
                    record.removed = true;
                    record.tags.clear();
                    record.digests.clear();
                    worker.write_record(record, &image.config)?;
                }
                worker.purge_locked(&id)
            })
            .await?;
            drop(guard);
            Ok(true)
        });
        task.await.unwrap_or_else(|error| Err(Error::internal("remove an image", error)))
    }
}

impl Inner {
    /// Collects an image that was removed, if it is not used. For threads that may block.
    pub(super) fn purge(self: &Arc<Self>, id: &Digest) -> Result<(), Error> {
        let _guard = self.records.blocking_lock();
        self.purge_locked(id)
    }

    /// The same where the caller has the lock of the records.
    pub(super) fn purge_locked(&self, id: &Digest) -> Result<(), Error> {
        let usage = self.index().entry(id).map(|entry| entry.usage).unwrap_or_default();
        let Some(unused) = self.index().take_unused(id) else {
            return Ok(());
        };
        self.throw_away(&self.folders.image(id), usage)?;
        unused.iter().try_for_each(|key| self.collect_layer(key))
    }

    /// Moves a layer away if nobody uses it. For threads that may block.
    pub(super) fn collect_layer(&self, key: &LayerKey) -> Result<(), Error> {
        let flight = self.flights.layer(key);
        // Held by others for two renames at most.
        let _guard = flight.placing.blocking_lock();
        let Some(usage) = self.index().take_unused_layer(key) else {
            return Ok(());
        };
        self.throw_away(&self.folders.layer(key), usage)
    }
}
