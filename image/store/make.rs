//! How layers and images come into the store: made beside it, and put in by a rename.

use std::fs;
use std::future::Future;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use super::durable::{durable_replace, sync_folder};
use super::flights::Making;
use super::folders::{CONFIG, RECORD, make_private, write_json};
use super::index::{LayerKey, Lease, NewLayer, lease};
use super::reaper::Job;
use super::record::{DiskUsage, ImageRecord, LayerRecord};
use super::walk::{measure, measure_patch};
use super::{Inner, folders, marker};
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::downloads::{Turn, Turns};
use crate::error::{Error, blocking};
use crate::image::Image;
use crate::reference::Reference;

/// A folder in which something is made. Unless it becomes part of the store, it is deleted with its last owner: the
/// thread that writes into it has one of them.
#[derive(Debug)]
pub(crate) struct HalfMade {
    store: Weak<Inner>,
    path: PathBuf,
}

impl HalfMade {
    pub(crate) fn new(inner: &Arc<Inner>) -> Result<Self, Error> {
        let path = inner.folders.new_tmp();
        make_private(&path)?;
        Ok(Self { store: Arc::downgrade(inner), path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The folder that becomes a layer's content.
    pub(crate) fn fs(&self) -> PathBuf {
        self.path.join("fs")
    }

    /// The file by which the layer's archive can be made again.
    pub(crate) fn recipe(&self) -> PathBuf {
        self.path.join(folders::RECIPE)
    }

    /// Makes that folder, as the root of a filesystem.
    pub(crate) fn make_fs(&self) -> Result<(), Error> {
        let fs = self.fs();
        fs::create_dir(&fs).map_err(|error| Error::io("make", &fs, error))?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&fs, mode).map_err(|error| Error::io("change the mode of", &fs, error))
    }
}

impl Drop for HalfMade {
    fn drop(&mut self) {
        // After the rename there is nothing here; and what a crash leaves, the next open takes away.
        if let Some(inner) = self.store.upgrade() {
            inner.reaper.send(Job::Delete(self.path.clone()));
        }
    }
}

/// An image as a pull or a load has found it.
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

/// What an image is called.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    pub(crate) tags: Vec<String>,
    pub(crate) digests: Vec<String>,
    pub(crate) manifests: Vec<Digest>,
    /// Marks of signatures that were verified.
    pub(crate) verified: Vec<String>,
    /// The archive that it came from.
    pub(crate) origins: Vec<String>,
}

impl Names {
    /// The names that a pull of `reference` gives, which has come to these manifests (the first is what was asked for).
    pub(crate) fn pulled(reference: &Reference, manifests: Vec<Digest>) -> Self {
        let digests = manifests.first().map(|digest| reference.with_digest(digest)).into_iter().collect();
        let tags = reference.tagged().into_iter().collect();
        Self { tags, digests, manifests, ..Self::default() }
    }
}

impl Inner {
    /// Leases a layer; if it is not there, `make` makes it, after it has got one of `turns` if there are any. Who comes
    /// meanwhile waits, and makes it if this fails or is slow.
    pub(crate) async fn lease_or_make<F>(
        self: &Arc<Self>,
        key: &LayerKey,
        turns: Option<&Turns>,
        make: impl FnOnce(Arc<Making>, Option<Turn>) -> F,
    ) -> Result<Lease, Error>
    where
        F: Future<Output = Result<(Arc<HalfMade>, LayerRecord), Error>>,
    {
        if let Some(lease) = lease(self, key) {
            return Ok(lease);
        }
        let flight = self.flights.layer(key);
        let (making, turn) = loop {
            // Without a turn: who waits for another one's layer does not keep a third one from a turn.
            flight.idle().await;
            let turn = match turns {
                Some(turns) => Some(turns.next().await?),
                None => None,
            };
            if let Some(lease) = lease(self, key) {
                return Ok(lease);
            }
            if let Some(making) = flight.clone().begin() {
                break (Arc::new(making), turn);
            }
        };
        let (made, record) = make(making.clone(), turn).await?;
        let (inner, measured) = (self.clone(), key.clone());
        // Before the lock: whoever collects a layer of this name waits for the renames alone.
        let (made, new) = blocking("measure a layer", move || {
            let new = inner.describe(&measured, &made, record)?;
            Ok((made, new))
        })
        .await?;
        let guard = flight.placing.clone().lock_owned().await;
        let inner = self.clone();
        let key = key.clone();
        blocking("put a layer into the store", move || {
            // Both live until the layer is in, also if the caller has gone.
            let (_guard, _making) = (guard, making);
            match lease(&inner, &key) {
                Some(lease) => Ok(lease),
                None => inner.put_layer(&key, &made, new),
            }
        })
        .await
    }

    /// One more lease of a layer that is there.
    pub(crate) fn lease_again(self: &Arc<Self>, key: &LayerKey) -> Option<Lease> {
        lease(self, key)
    }

    /// Writes the record of a layer that has been made, and counts it.
    fn describe(&self, key: &LayerKey, made: &HalfMade, mut record: LayerRecord) -> Result<NewLayer, Error> {
        record.boot_id.clone_from(&self.boot_id);
        // Twice: the record is counted as well.
        let file = made.path().join("layer.json");
        for _ in 0..2 {
            write_json(&file, &record)?;
            record.usage = match key {
                LayerKey::Diff(_) | LayerKey::Artifact(_) => measure(made.path())?,
                LayerKey::Patch(_) => measure_patch(made.path())?,
            };
        }
        let stat = fs::metadata(made.path()).map_err(|error| Error::io("read", made.path(), error))?;
        Ok(NewLayer {
            summary: record.summary(),
            usage: record.usage,
            inode: stat.ino(),
            durable: false,
            digested: false,
        })
    }

    fn put_layer(self: &Arc<Self>, key: &LayerKey, made: &HalfMade, new: NewLayer) -> Result<Lease, Error> {
        let folder = self.folders.layer(key);
        // A folder that the index does not have, or has as broken, is of no use to anybody.
        self.throw_away(&folder, DiskUsage::default())?;
        fs::rename(made.path(), &folder).map_err(|error| Error::io("put in place", &folder, error))?;
        self.index().put_layer(key.clone(), new);
        lease(self, key).ok_or_else(|| Error::internal("lease a layer", "it has vanished"))
    }

    /// Records an image whose layers the caller has leased, or gives more names to one that is there. When this returns,
    /// the image outlasts a power cut.
    pub(crate) async fn record_image(self: &Arc<Self>, new: NewImage) -> Result<Arc<Image>, Error> {
        let inner = self.clone();
        let (new, prepared) = blocking("record an image", move || {
            let prepared = inner.prepare(&new)?;
            Ok((new, prepared))
        })
        .await?;
        // The layers and what was prepared: from here on the record may say that they are there.
        self.syncs.all().await?;
        for key in self.index().set_durable(&new.layers) {
            self.marker.send(marker::Job::Digest(key));
        }
        let guard = self.records.lock().await;
        let inner = self.clone();
        let image = blocking("record an image", move || inner.commit(new, &prepared)).await;
        drop(guard);
        image
    }

    /// Gives more names to an image that is there. `None` if it is not, or not any more, or something of it is missing.
    pub(crate) async fn name_image(
        self: &Arc<Self>,
        id: &Digest,
        names: Names,
        size: u64,
    ) -> Result<Option<Arc<Image>>, Error> {
        let guard = self.records.lock().await;
        let known = {
            let index = self.index();
            let whole = index.listed(id).filter(|entry| !index.has_broken(&entry.record.layers));
            whole.map(|entry| (entry.record.clone(), entry.image.clone()))
        };
        let Some((record, known)) = known else {
            return Ok(None);
        };
        let inner = self.clone();
        let image = blocking("record an image", move || inner.rename_image(record, known, names, size)).await;
        drop(guard);
        image.map(Some)
    }

    fn rename_image(
        &self,
        before: ImageRecord,
        known: Arc<Image>,
        names: Names,
        size: u64,
    ) -> Result<Arc<Image>, Error> {
        let mut record = before.clone();
        record.add(names.clone());
        record.size = size;
        let image = if record == before { known } else { self.write_record(record, &known.config)? };
        self.take_tags(&names.tags, &image.id)?;
        Ok(image)
    }

    /// Takes tags away from the images that have them, except `keeper`: a tag is one image's name. Only after that one has
    /// them for good: a tag may have two owners after a power cut, of which the later one keeps it, but never none.
    fn take_tags(&self, tags: &[String], keeper: &Digest) -> Result<(), Error> {
        let losers = self.index().others_with(tags, keeper);
        for loser in losers {
            let Some(mut record) = self.index().without_tags(&loser, tags) else { continue };
            record.change = self.next_change();
            durable_replace(&self.folders.image(&loser).join(RECORD), &record)?;
        }
        Ok(())
    }

    /// Writes a new image beside the store, as far as it can be written before its layers are on the disk.
    fn prepare(self: &Arc<Self>, new: &NewImage) -> Result<HalfMade, Error> {
        let made = HalfMade::new(self)?;
        let file = made.path().join(CONFIG);
        fs::write(&file, &new.config_bytes).map_err(|error| Error::io("write", &file, error))?;
        write_json(&made.path().join(RECORD), &self.merged(new))?;
        Ok(made)
    }

    /// The record of a new image, with the names that it has if it is known.
    fn merged(&self, new: &NewImage) -> ImageRecord {
        let known = self.index().entry(&new.id).map(|entry| entry.record.clone());
        let mut record = known.unwrap_or_else(|| ImageRecord::new(new.id.clone()));
        record.removed = false;
        record.synced = true;
        record.change = self.next_change();
        record.diff_ids.clone_from(&new.diff_ids);
        record.layers.clone_from(&new.layers);
        record.add(new.names.clone());
        record.size = new.size;
        record
    }

    /// Puts a new image in, whose layers and record are on the disk.
    fn commit(self: &Arc<Self>, new: NewImage, prepared: &HalfMade) -> Result<Arc<Image>, Error> {
        let folder = self.folders.image(&new.id);
        let whole = self.index().entry(&new.id).map(|entry| entry.damage.is_none());
        let record = self.merged(&new);
        if whole == Some(true) {
            // It came by another name meanwhile, or was removed while it was in use.
            durable_replace(&folder.join(RECORD), &record)?;
        } else {
            if whole.is_some() {
                // Its names may have changed since.
                durable_replace(&prepared.path().join(RECORD), &record)?;
            }
            self.throw_away(&folder, DiskUsage::default())?;
            fs::rename(prepared.path(), &folder)
                .map_err(|error| Error::io("put in place", &folder, error))?;
            sync_folder(&self.folders.images())?;
        }
        let tags = new.names.tags;
        let image = self.show(record, &new.config, None)?;
        self.take_tags(&tags, &image.id)?;
        Ok(image)
    }

    /// Says of an image whose layers are on the disk now that they are.
    pub(super) fn settle(&self, id: &Digest) -> Result<(), Error> {
        let _guard = self.records.blocking_lock();
        let known = {
            let index = self.index();
            index.entry(id).map(|entry| (entry.record.clone(), entry.image.clone()))
        };
        let Some((mut record, image)) = known else { return Ok(()) };
        for key in self.index().set_durable(&record.layers) {
            self.marker.send(marker::Job::Digest(key));
        }
        record.synced = true;
        self.write_record(record, &image.config).map(drop)
    }

    /// Shows an image again, whose record is the same and which is pinned now, or is not any more.
    pub(crate) fn show_again(&self, id: &Digest) -> Result<(), Error> {
        let _guard = self.records.blocking_lock();
        let known = {
            let index = self.index();
            index.entry(id).map(|entry| (entry.record.clone(), entry.image.clone(), entry.damage.clone()))
        };
        match known {
            Some((record, image, damage)) => self.show(record, &image.config, damage).map(drop),
            None => Ok(()),
        }
    }

    /// Writes the record of an image that is known, for good, and shows it.
    pub(super) fn write_record(
        &self,
        mut record: ImageRecord,
        config: &ImageConfig,
    ) -> Result<Arc<Image>, Error> {
        record.change = self.next_change();
        durable_replace(&self.folders.image(&record.id).join(RECORD), &record)?;
        let damage = self.index().entry(&record.id).and_then(|entry| entry.damage.clone());
        self.show(record, config, damage)
    }

    fn show(
        &self,
        record: ImageRecord,
        config: &ImageConfig,
        damage: Option<String>,
    ) -> Result<Arc<Image>, Error> {
        let folder = self.folders.image(&record.id);
        let pinned = record.is_pinned(&self.options.pinned, &self.notes());
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

/// The configuration that is kept with an image.
pub(super) fn read_config(folders: &folders::Folders, id: &Digest) -> Result<Vec<u8>, Error> {
    let path = folders.image(id).join(CONFIG);
    let bytes = fs::read(&path).map_err(|error| Error::io("read", &path, error))?;
    if Digest::of(id.algorithm(), &bytes) != *id {
        return Err(Error::corrupt(path.display().to_string(), "is not what its digest says"));
    }
    Ok(bytes)
}
