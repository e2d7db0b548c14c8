//! How layers and images come into the store: made beside it, and put in by a rename.

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use super::flights::Making;
use super::folders::{make_private, replace_json, write_json};
use super::index::{LayerKey, Lease, lease};
use super::reaper::Job;
use super::record::{ImageRecord, LayerRecord};
use super::walk::{measure, measure_patch};
use super::{Inner, folders};
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
        let guard = flight.placing.clone().lock_owned().await;
        let inner = self.clone();
        let key = key.clone();
        blocking("put a layer into the store", move || {
            // Both live until the layer is in, also if the caller has gone.
            let (_guard, _making) = (guard, making);
            match lease(&inner, &key) {
                Some(lease) => Ok(lease),
                None => inner.put_layer(&key, &made, record),
            }
        })
        .await
    }

    /// One more lease of a layer that is there.
    pub(crate) fn lease_again(self: &Arc<Self>, key: &LayerKey) -> Option<Lease> {
        lease(self, key)
    }

    fn put_layer(
        self: &Arc<Self>,
        key: &LayerKey,
        made: &HalfMade,
        mut record: LayerRecord,
    ) -> Result<Lease, Error> {
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
        let folder = self.folders.layer(key);
        // A folder that the index does not have is of no use to anybody.
        if let Some(old) = self.folders.discard(&folder)? {
            self.reaper.send(Job::Delete(old));
        }
        fs::rename(made.path(), &folder).map_err(|error| Error::io("put in place", &folder, error))?;
        self.index().put_layer(key.clone(), &record.summary(), record.usage);
        self.reaper.send(Job::Sync(key.clone()));
        lease(self, key).ok_or_else(|| Error::internal("lease a layer", "it has vanished"))
    }

    /// Records an image whose layers the caller has leased, or gives more names to one that is there.
    pub(crate) async fn record_image(self: &Arc<Self>, new: NewImage) -> Result<Arc<Image>, Error> {
        let guard = self.records.lock().await;
        self.take_tags(&new.names.tags, Some(&new.id)).await?;
        let inner = self.clone();
        let image = blocking("record an image", move || inner.write_image(new)).await;
        drop(guard);
        image
    }

    /// Gives more names to an image that is there. `None` if it is not, or not any more.
    pub(crate) async fn name_image(
        self: &Arc<Self>,
        id: &Digest,
        names: Names,
        size: u64,
    ) -> Result<Option<Arc<Image>>, Error> {
        let guard = self.records.lock().await;
        let known = {
            let index = self.index();
            index.entry(id).filter(|entry| !entry.record.removed).map(|entry| entry.image.clone())
        };
        let Some(known) = known else {
            return Ok(None);
        };
        self.take_tags(&names.tags, Some(id)).await?;
        let inner = self.clone();
        let id = id.clone();
        let image = blocking("record an image", move || inner.rename_image(&id, &known, names, size)).await;
        drop(guard);
        image.map(Some)
    }

    fn rename_image(&self, id: &Digest, known: &Image, names: Names, size: u64) -> Result<Arc<Image>, Error> {
        let record = self.index().entry(id).map(|entry| entry.record.clone());
        let mut record =
            record.ok_or_else(|| Error::not_found(format!("image {id}"), "it has been removed"))?;
        let before = record.clone();
        record.add(names);
        record.size = size;
        if record == before
            && let Some(image) = self.index().entry(id).map(|entry| entry.image.clone())
        {
            return Ok(image);
        }
        self.write_record(&record, &known.config)
    }

    /// Takes tags away from the images that have them, except `keeper`: a tag is one image's name.
    async fn take_tags(self: &Arc<Self>, tags: &[String], keeper: Option<&Digest>) -> Result<(), Error> {
        for tag in tags {
            let holder = self.index().holder(tag).filter(|holder| Some(holder) != keeper);
            let Some(holder) = holder else {
                continue;
            };
            let known = {
                let index = self.index();
                index.entry(&holder).map(|entry| (entry.record.clone(), entry.image.clone()))
            };
            if let Some((mut record, image)) = known {
                record.tags.remove(tag);
                let inner = self.clone();
                blocking("record an image", move || inner.write_record(&record, &image.config)).await?;
            }
        }
        Ok(())
    }

    fn write_image(self: &Arc<Self>, new: NewImage) -> Result<Arc<Image>, Error> {
        let folder = self.folders.image(&new.id);
        let known = self.index().entry(&new.id).map(|entry| entry.record.clone());
        let fresh = known.is_none();
        let mut record = match known {
            Some(record) => ImageRecord { removed: false, layers: new.layers, ..record },
            None => ImageRecord {
                id: new.id,
                tags: Default::default(),
                digests: Default::default(),
                manifests: Default::default(),
                size: new.size,
                diff_ids: new.diff_ids,
                layers: new.layers,
                verified: Default::default(),
                origins: Default::default(),
                removed: false,
            },
        };
        record.add(new.names);
        record.size = new.size;
        if !fresh {
            return self.write_record(&record, &new.config);
        }
        // Not synced: like its layers, the image lasts once the background thread has had its turn. What a crash of the
        // host leaves of it before is not whole, and so not trusted.
        let made = HalfMade::new(self)?;
        let file = made.path().join("config.json");
        fs::write(&file, &new.config_bytes).map_err(|error| Error::io("write", &file, error))?;
        write_json(&made.path().join("image.json"), &record)?;
        if let Some(old) = self.folders.discard(&folder)? {
            self.reaper.send(Job::Delete(old));
        }
        fs::rename(made.path(), &folder).map_err(|error| Error::io("put in place", &folder, error))?;
        self.reaper.send(Job::SyncRecords);
        self.show(&record, &new.config)
    }

    /// Shows an image again, whose record is the same and which is pinned now, or is not any more.
    pub(crate) fn show_again(&self, id: &Digest) -> Result<(), Error> {
        let _guard = self.records.blocking_lock();
        let known = {
            let index = self.index();
            index.entry(id).map(|entry| (entry.record.clone(), entry.image.clone()))
        };
        match known {
            Some((record, image)) => self.write_record(&record, &image.config).map(drop),
            None => Ok(()),
        }
    }

    /// Writes an image's record, for good, and shows it.
    pub(super) fn write_record(
        &self,
        record: &ImageRecord,
        config: &ImageConfig,
    ) -> Result<Arc<Image>, Error> {
        let folder = self.folders.image(&record.id);
        replace_json(&folder.join("image.json"), record, true)?;
        self.show(record, config)
    }

    fn show(&self, record: &ImageRecord, config: &ImageConfig) -> Result<Arc<Image>, Error> {
        let folder = self.folders.image(&record.id);
        let pinned = record.is_pinned(&self.options.pinned, &self.notes());
        let image = record.image(config.clone(), pinned);
        let usage = measure(&folder)?;
        self.index().put(record.clone(), image.clone(), usage)?;
        Ok(image)
    }
}

/// The configuration that is kept with an image.
pub(super) fn read_config(folders: &folders::Folders, id: &Digest) -> Result<Vec<u8>, Error> {
    let path = folders.image(id).join("config.json");
    let bytes = fs::read(&path).map_err(|error| Error::io("read", &path, error))?;
    if Digest::of(id.algorithm(), &bytes) != *id {
        return Err(Error::corrupt(path.display().to_string(), "is not what its digest says"));
    }
    Ok(bytes)
}
