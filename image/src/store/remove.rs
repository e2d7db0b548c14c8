//! Removes images, and collects images and layers without users.

use std::sync::Arc;

use super::layer_key::LayerKey;
use super::{ImageStore, Inner};
use crate::digest::Digest;
use crate::error::{Error, blocking};

impl ImageStore {
    /// Removes an image with all its names. If containers or holds use it, it is hidden immediately, and its
    /// layers are removed with the last user. Returns whether the image existed.
    ///
    /// # Errors
    /// The store's files cannot be changed.
    pub async fn remove(&self, name: &str) -> Result<bool, Error> {
        let inner = self.inner.clone();
        let name = name.to_owned();
        // In its own task, so that a caller that gives up does not leave half a removal.
        let task = tokio::spawn(async move {
            let guard = inner.records.lock().await;
            let id = inner.resolve(&name).map(|image| image.id.clone());
            let Some(id) = id.or_else(|| inner.index().resolve_damaged(&name)) else {
                return Ok(false);
            };
            let worker = inner.clone();
            blocking("remove an image", move || {
                let existing =
                    worker.index().entry(&id).map(|entry| (entry.record.clone(), entry.image.clone()));
                if let Some((mut record, image)) = existing {
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
    /// Collects a removed image, if it has no users. It blocks.
    pub(super) fn purge(self: &Arc<Self>, id: &Digest) -> Result<(), Error> {
        let _guard = self.records.blocking_lock();
        self.purge_locked(id)
    }

    /// Collects a removed image like [`Self::purge`]. The caller holds the lock of the records.
    pub(super) fn purge_locked(&self, id: &Digest) -> Result<(), Error> {
        let usage = self.index().entry(id).map(|entry| entry.usage).unwrap_or_default();
        let Some(unused) = self.index().take_unused(id) else {
            return Ok(());
        };
        self.move_to_trash(&self.folders.image(id), usage)?;
        unused.iter().try_for_each(|key| self.collect_layer(key))
    }

    /// Moves a layer to the trash if it has no users. It blocks.
    pub(super) fn collect_layer(&self, key: &LayerKey) -> Result<(), Error> {
        let state = self.in_progress.layer(key);
        // Others hold it for two renames at most.
        let _guard = state.placing.blocking_lock();
        let Some(usage) = self.index().take_unused_layer(key) else {
            return Ok(());
        };
        self.move_to_trash(&self.folders.layer(key), usage)
    }
}
