//! Adds layers and images to the store. They are created in a staging folder, which is renamed into place.

use std::fs;
use std::future::Future;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Inner;
use super::disk_usage::DiskUsage;
use super::durable::{durable_replace, sync_folder};
use super::folders::{CONFIG, Folders, RECORD, write_json};
use super::hold::{Lease, lease};
use super::in_progress::Creation;
use super::index::NewLayer;
use super::jobs::ReadingJob;
use super::layer_key::LayerKey;
use super::names::Names;
use super::record::{ImageRecord, LayerRecord};
use super::staging::StagingFolder;
use super::walk::{measure, measure_patch};
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::downloads::{Slot, Slots};
use crate::error::{Error, blocking};
use crate::image::Image;

/// An image from a pull or a load.
#[derive(Debug)]
pub(crate) struct NewImage {
    pub(crate) id: Digest,
    pub(crate) config_bytes: Vec<u8>,
    pub(crate) config: ImageConfig,
    pub(crate) diff_ids: Vec<Digest>,
    pub(crate) layers: Vec<LayerKey>,
    pub(crate) names: Names,
    pub(crate) size: u64,
}

impl Inner {
    /// Leases a layer. If it does not exist, this waits for one of `slots`, if there are any, and `make`
    /// creates the layer. Concurrent callers wait, and create it themselves if this fails or is slow.
    pub(crate) async fn lease_or_create<F>(
        self: &Arc<Self>,
        key: &LayerKey,
        slots: Option<&Slots>,
        create: impl FnOnce(Arc<Creation>, Option<Slot>) -> F,
    ) -> Result<Lease, Error>
    where
        F: Future<Output = Result<(Arc<StagingFolder>, LayerRecord), Error>>,
    {
        if let Some(lease) = lease(self, key) {
            return Ok(lease);
        }
        let state = self.in_progress.layer(key);
        let (creation, slot) = loop {
            // No slot is held here: a caller that waits for another's layer must not occupy a slot.
            state.idle().await;
            let slot = match slots {
                Some(slots) => Some(slots.next().await?),
                None => None,
            };
            if let Some(lease) = lease(self, key) {
                return Ok(lease);
            }
            if let Some(creation) = state.clone().begin() {
                break (Arc::new(creation), slot);
            }
        };
        let (staging, record) = create(creation.clone(), slot).await?;
        let (inner, measured) = (self.clone(), key.clone());
        // This happens before the lock is taken, so that the collection of a layer of this name only waits
        // for renames.
        let (staging, new) = blocking("measure a layer", move || {
            let new = inner.describe(&measured, &staging, record)?;
            Ok((staging, new))
        })
        .await?;
        let guard = state.placing.clone().lock_owned().await;
        let inner = self.clone();
        let key = key.clone();
        blocking("add a layer to the store", move || {
            // Both are held until the layer is added, also if the caller has given up.
            let (_guard, _creation) = (guard, creation);
            match lease(&inner, &key) {
                Some(lease) => Ok(lease),
                None => inner.put_layer(&key, &staging, new),
            }
        })
        .await
    }

    /// Returns another lease of an existing layer.
    pub(crate) fn lease_again(self: &Arc<Self>, key: &LayerKey) -> Option<Lease> {
        lease(self, key)
    }

    /// Writes the record of a new layer, and measures it.
    fn describe(
        &self,
        key: &LayerKey,
        staging: &StagingFolder,
        mut record: LayerRecord,
    ) -> Result<NewLayer, Error> {
        record.boot_id.clone_from(&self.boot_id);
        // Written twice, since the size includes the record itself.
        let file = staging.path().join("layer.json");
        for _ in 0..2 {
            write_json(&file, &record)?;
            record.usage = match key {
                LayerKey::Diff(_) | LayerKey::Artifact(_) => measure(staging.path())?,
                LayerKey::Patch(_) => measure_patch(staging.path())?,
            };
        }
        let stat = fs::metadata(staging.path()).map_err(|error| Error::io("read", staging.path(), error))?;
        Ok(NewLayer {
            summary: record.summary(),
            usage: record.usage,
            inode: stat.ino(),
            durable: false,
            digested: false,
        })
    }

    fn put_layer(
        self: &Arc<Self>,
        key: &LayerKey,
        staging: &StagingFolder,
        new: NewLayer,
    ) -> Result<Lease, Error> {
        let folder = self.folders.layer(key);
        // A folder that the index does not contain, or has marked as broken, is not used.
        self.move_to_trash(&folder, DiskUsage::default())?;
        fs::rename(staging.path(), &folder)
            .map_err(|error| Error::io("rename the folder to", &folder, error))?;
        self.index().put_layer(key.clone(), new);
        lease(self, key).ok_or_else(|| Error::internal("lease a layer", "it has disappeared"))
    }

    /// Records an image whose layers the caller has leased, or adds names to an existing image. When this
    /// returns, the image is durable.
    pub(crate) async fn record_image(self: &Arc<Self>, new: NewImage) -> Result<Arc<Image>, Error> {
        let inner = self.clone();
        let (new, prepared) = blocking("record an image", move || {
            let prepared = inner.prepare(&new)?;
            Ok((new, prepared))
        })
        .await?;
        // Syncs the layers and the prepared files. From here on the record may state that they are on the
        // disk.
        self.syncs.all().await?;
        for key in self.index().set_durable(&new.layers) {
            self.marker.send(ReadingJob::Digest(key));
        }
        let guard = self.records.lock().await;
        let inner = self.clone();
        let image = blocking("record an image", move || inner.commit(new, &prepared)).await;
        drop(guard);
        image
    }

    /// Adds names to an existing image. `None` if it does not exist, is removed or is damaged.
    pub(crate) async fn name_image(
        self: &Arc<Self>,
        id: &Digest,
        names: Names,
        size: u64,
    ) -> Result<Option<Arc<Image>>, Error> {
        let guard = self.records.lock().await;
        let existing = {
            let index = self.index();
            let whole = index.listed(id).filter(|entry| !index.has_broken(&entry.record.layers));
            whole.map(|entry| (entry.record.clone(), entry.image.clone()))
        };
        let Some((record, image)) = existing else {
            return Ok(None);
        };
        let inner = self.clone();
        let image = blocking("record an image", move || inner.rename_image(record, image, names, size)).await;
        drop(guard);
        image.map(Some)
    }

    fn rename_image(
        &self,
        before: ImageRecord,
        existing: Arc<Image>,
        names: Names,
        size: u64,
    ) -> Result<Arc<Image>, Error> {
        let mut record = before.clone();
        record.add(names.clone());
        record.size = size;
        let image = if record == before { existing } else { self.write_record(record, &existing.config)? };
        self.move_tags(&names.tags, &image.id)?;
        Ok(image)
    }

    /// Removes tags from all images except `owner`: a tag belongs to one image. It is called after the
    /// owner's record is durable. After a power failure a tag may have two owners: the newer one
    /// keeps it. A tag is never without an owner.
    fn move_tags(&self, tags: &[String], owner: &Digest) -> Result<(), Error> {
        let previous_owners = self.index().others_with(tags, owner);
        for previous in previous_owners {
            let Some(mut record) = self.index().without_tags(&previous, tags) else { continue };
            record.change = self.next_change();
            durable_replace(&self.folders.image(&previous).join(RECORD), &record)?;
        }
        Ok(())
    }

    /// Writes the parts of a new image that can be written before its layers are on the disk to a staging
    /// folder.
    fn prepare(self: &Arc<Self>, new: &NewImage) -> Result<StagingFolder, Error> {
        let staging = StagingFolder::new(self)?;
        let file = staging.path().join(CONFIG);
        fs::write(&file, &new.config_bytes).map_err(|error| Error::io("write", &file, error))?;
        write_json(&staging.path().join(RECORD), &self.merged(new))?;
        Ok(staging)
    }

    /// Returns the record of a new image. If the image is in the store, its names are kept.
    fn merged(&self, new: &NewImage) -> ImageRecord {
        let existing = self.index().entry(&new.id).map(|entry| entry.record.clone());
        let mut record = existing.unwrap_or_else(|| ImageRecord::new(new.id.clone()));
        record.removed = false;
        record.synced = true;
        record.change = self.next_change();
        record.diff_ids.clone_from(&new.diff_ids);
        record.layers.clone_from(&new.layers);
        record.add(new.names.clone());
        record.size = new.size;
        record
    }

    /// Adds a new image whose layers and record are on the disk.
    fn commit(self: &Arc<Self>, new: NewImage, prepared: &StagingFolder) -> Result<Arc<Image>, Error> {
        let folder = self.folders.image(&new.id);
        let whole = self.index().entry(&new.id).map(|entry| entry.damage.is_none());
        let record = self.merged(&new);
        if whole == Some(true) {
            // It was added by another name meanwhile, or was removed while it was in use.
            durable_replace(&folder.join(RECORD), &record)?;
        } else {
            if whole.is_some() {
                // Its names may have changed since `prepare`.
                durable_replace(&prepared.path().join(RECORD), &record)?;
            }
            self.move_to_trash(&folder, DiskUsage::default())?;
            fs::rename(prepared.path(), &folder)
                .map_err(|error| Error::io("rename the folder to", &folder, error))?;
            sync_folder(&self.folders.images())?;
        }
        let tags = new.names.tags;
        let image = self.publish(record, &new.config, None)?;
        self.move_tags(&tags, &image.id)?;
        Ok(image)
    }

    /// Records that the layers of an image are on the disk.
    pub(super) fn mark_synced(&self, id: &Digest) -> Result<(), Error> {
        let _guard = self.records.blocking_lock();
        let existing = {
            let index = self.index();
            index.entry(id).map(|entry| (entry.record.clone(), entry.image.clone()))
        };
        let Some((mut record, image)) = existing else { return Ok(()) };
        for key in self.index().set_durable(&record.layers) {
            self.marker.send(ReadingJob::Digest(key));
        }
        record.synced = true;
        self.write_record(record, &image.config).map(drop)
    }

    /// Publishes an image again whose record is unchanged, but whose pinning has changed.
    pub(crate) fn refresh(&self, id: &Digest) -> Result<(), Error> {
        let _guard = self.records.blocking_lock();
        let existing = {
            let index = self.index();
            index.entry(id).map(|entry| (entry.record.clone(), entry.image.clone(), entry.damage.clone()))
        };
        match existing {
            Some((record, image, damage)) => self.publish(record, &image.config, damage).map(drop),
            None => Ok(()),
        }
    }

    /// Writes the record of an existing image durably, and publishes it.
    pub(super) fn write_record(
        &self,
        mut record: ImageRecord,
        config: &ImageConfig,
    ) -> Result<Arc<Image>, Error> {
        record.change = self.next_change();
        durable_replace(&self.folders.image(&record.id).join(RECORD), &record)?;
        let damage = self.index().entry(&record.id).and_then(|entry| entry.damage.clone());
        self.publish(record, config, damage)
    }

    fn publish(
        &self,
        record: ImageRecord,
        config: &ImageConfig,
        damage: Option<String>,
    ) -> Result<Arc<Image>, Error> {
        let folder = self.folders.image(&record.id);
        let pinned = record.is_pinned(&self.options.pinned, &self.imports());
        let image = record.image(config.clone(), pinned);
        let usage = measure(&folder)?;
        self.index().put(record, image.clone(), usage, damage);
        Ok(image)
    }

    /// See [`ImageRecord::change`].
    fn next_change(&self) -> u64 {
        self.changes.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Reads the config that is stored with an image.
pub(super) fn read_config(folders: &Folders, id: &Digest) -> Result<Vec<u8>, Error> {
    let path = folders.image(id).join(CONFIG);
    let bytes = fs::read(&path).map_err(|error| Error::io("read", &path, error))?;
    if Digest::of(id.algorithm(), &bytes) != *id {
        return Err(Error::corrupt(path.display().to_string(), "its digest is not that of the image"));
    }
    Ok(bytes)
}
