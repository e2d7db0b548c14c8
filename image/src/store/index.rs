//! The index: the content of the store and its users, in memory.
//!
//! An image uses its layers. Containers and holds use images. A pull leases layers until its image is
//! recorded. Images and layers without users are collected.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::disk_usage::{DiskUsage, Measured, sum};
use super::layer_key::LayerKey;
use super::quota::Project;
use super::record::{ContainerRecord, ImageRecord, LayerSummary};
use crate::digest::{Algorithm, Digest};
use crate::error::Error;
use crate::image::Image;
use crate::reference::{Reference, is_hex_id};

/// The prefix of containers among an image's users.
const CONTAINER: &str = "container ";

/// An image and its users.
#[derive(Debug)]
pub(super) struct ImageEntry {
    pub(super) record: ImageRecord,
    pub(super) image: Arc<Image>,
    pub(super) usage: DiskUsage,
    /// The missing part. The image is not listed until it is pulled again.
    pub(super) damage: Option<String>,
    /// The users: containers, and holds by their owners' names.
    users: Vec<String>,
    /// The layers that count this image as a user.
    referenced: Vec<LayerKey>,
}

impl ImageEntry {
    fn is_listed(&self) -> bool {
        !self.record.removed && self.damage.is_none()
    }

    /// Returns the containers that run on the image or mount it.
    pub(super) fn containers(&self) -> impl Iterator<Item = &str> {
        self.users.iter().filter_map(|user| user.strip_prefix(CONTAINER))
    }
}

/// A layer and its users.
#[derive(Debug)]
pub(super) struct LayerEntry {
    /// The length of its archive, if the archive can be rebuilt.
    pub(super) length: Option<u64>,
    depends_on_others: bool,
    pub(super) usage: DiskUsage,
    /// The inode of its folder, which distinguishes it from a later layer of the same name.
    pub(super) inode: u64,
    /// Its content is synced to the disk.
    pub(super) durable: bool,
    /// The digest of its files is recorded.
    pub(super) digested: bool,
    /// Its files have changed. It is created again when it is needed.
    broken: bool,
    references: usize,
}

/// A layer to be added to the index.
#[derive(Debug)]
pub(super) struct NewLayer {
    pub(super) summary: LayerSummary,
    pub(super) usage: DiskUsage,
    pub(super) inode: u64,
    pub(super) durable: bool,
    pub(super) digested: bool,
}

/// A container's writable layer. Its images are unknown if a crash has left an incomplete folder.
#[derive(Clone, Debug)]
pub(super) struct ContainerEntry {
    pub(super) record: Option<ContainerRecord>,
    /// None until it is measured.
    pub(super) usage: Option<Measured>,
    /// None where the filesystem does not count by project.
    pub(super) project: Option<Project>,
}

/// The content of the store.
#[derive(Debug, Default)]
pub(super) struct Index {
    images: BTreeMap<Digest, ImageEntry>,
    /// The tags and digest references of images that are not removed.
    names: HashMap<String, Digest>,
    layers: HashMap<LayerKey, LayerEntry>,
    pub(super) containers: BTreeMap<String, ContainerEntry>,
}

impl Index {
    pub(super) fn list(&self) -> Vec<Arc<Image>> {
        let listed = self.images.values().filter(|entry| entry.is_listed());
        listed.map(|entry| entry.image.clone()).collect()
    }

    pub(super) fn resolve(&self, name: &str) -> Option<Arc<Image>> {
        let by_id = |id: &Digest| self.listed(id).map(|entry| entry.image.clone());
        if let Ok(id) = name.parse::<Digest>() {
            return by_id(&id);
        }
        if is_hex_id(name) {
            return format!("{}:{name}", Algorithm::Sha256.as_str()).parse().ok().as_ref().and_then(by_id);
        }
        let reference = name.parse::<Reference>().ok();
        let id = reference.and_then(|reference| match reference.digest() {
            Some(digest) => self.names.get(&reference.with_digest(digest)),
            None => self.names.get(&reference.tagged()?),
        });
        match id {
            Some(id) => by_id(id),
            None => self.by_prefix(name),
        }
    }

    /// Returns the image whose id starts with `name`, if there is exactly one: users may abbreviate an id
    /// (crictl passes it on).
    fn by_prefix(&self, name: &str) -> Option<Arc<Image>> {
        let prefix = name.strip_prefix("sha256:").unwrap_or(name);
        if prefix.is_empty() {
            return None;
        }
        let mut fitting = self
            .images
            .values()
            .filter(|entry| entry.is_listed() && entry.record.id.hex().starts_with(prefix));
        let first = fitting.next()?;
        fitting.next().is_none().then(|| first.image.clone())
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &ImageEntry> {
        self.images.values()
    }

    pub(super) fn entry(&self, id: &Digest) -> Option<&ImageEntry> {
        self.images.get(id)
    }

    /// Returns an image that is not removed and not damaged.
    pub(super) fn listed(&self, id: &Digest) -> Option<&ImageEntry> {
        self.images.get(id).filter(|entry| entry.is_listed())
    }

    /// Returns the images other than `owner` that have one of these tags, including damaged ones.
    pub(super) fn others_with(&self, tags: &[String], owner: &Digest) -> Vec<Digest> {
        let has = |entry: &&ImageEntry| {
            entry.record.id != *owner && tags.iter().any(|tag| entry.record.tags.contains(tag))
        };
        self.images.values().filter(has).map(|entry| entry.record.id.clone()).collect()
    }

    /// Returns the damaged images that are not removed.
    pub(super) fn damaged(&self) -> impl Iterator<Item = &ImageEntry> {
        self.images.values().filter(|entry| entry.damage.is_some() && !entry.record.removed)
    }

    /// Returns the first missing layer.
    pub(super) fn missing_layer<'a>(&self, layers: &'a [LayerKey]) -> Option<&'a LayerKey> {
        layers.iter().find(|key| !self.layers.contains_key(key))
    }

    /// Returns whether one of the layers has to be created again.
    pub(super) fn has_broken(&self, layers: &[LayerKey]) -> bool {
        layers.iter().any(|key| self.layers.get(key).is_some_and(|layer| layer.broken))
    }

    /// Adds an image, or replaces its former record.
    pub(super) fn put(
        &mut self,
        record: ImageRecord,
        image: Arc<Image>,
        usage: DiskUsage,
        damage: Option<String>,
    ) {
        let referenced: Vec<LayerKey> =
            record.layers.iter().filter(|key| self.layers.contains_key(key)).cloned().collect();
        for key in &referenced {
            if let Some(layer) = self.layers.get_mut(key) {
                layer.references += 1;
            }
        }
        let id = record.id.clone();
        let former = self.images.remove(&id);
        if let Some(former) = &former {
            self.names.retain(|_, holder| *holder != id);
            self.drop_references(&former.referenced);
        }
        let users = former.map(|former| former.users).unwrap_or_default();
        let entry = ImageEntry { record, image, usage, damage, users, referenced };
        if entry.is_listed() {
            for name in entry.record.tags.iter().chain(&entry.record.digests) {
                self.names.insert(name.clone(), id.clone());
            }
        }
        self.images.insert(id, entry);
    }

    /// Removes tags from an image. Returns its new record.
    pub(super) fn without_tags(&mut self, id: &Digest, tags: &[String]) -> Option<ImageRecord> {
        let entry = self.images.get(id)?;
        let (mut record, mut image) = (entry.record.clone(), (*entry.image).clone());
        let (usage, damage) = (entry.usage, entry.damage.clone());
        record.tags.retain(|tag| !tags.contains(tag));
        image.repo_tags.retain(|tag| !tags.contains(tag));
        self.put(record.clone(), Arc::new(image), usage, damage);
        Some(record)
    }

    /// Marks an image as damaged.
    pub(super) fn damage(&mut self, id: &Digest, why: String) {
        let Some(entry) = self.images.get_mut(id) else { return };
        entry.damage = Some(why);
        self.names.retain(|_, holder| holder != id);
    }

    /// Removes a user from each of the layers. Returns those that have no users left.
    pub(super) fn drop_references(&mut self, keys: &[LayerKey]) -> Vec<LayerKey> {
        let mut unused = Vec::new();
        for key in keys {
            if let Some(layer) = self.layers.get_mut(key) {
                layer.references = layer.references.saturating_sub(1);
                if layer.references == 0 {
                    unused.push(key.clone());
                }
            }
        }
        unused
    }

    /// Removes an image from the index if it is marked as removed and has no users. Returns its layers that
    /// have no users left.
    pub(super) fn take_unused(&mut self, id: &Digest) -> Option<Vec<LayerKey>> {
        let entry = self.images.get(id).filter(|entry| entry.record.removed && entry.users.is_empty())?;
        let keys = entry.referenced.clone();
        self.images.remove(id);
        Some(self.drop_references(&keys))
    }

    /// Returns the damaged image of a name.
    pub(super) fn resolve_damaged(&self, name: &str) -> Option<Digest> {
        let reference = name.parse::<Reference>().ok();
        let full = reference.and_then(|reference| match reference.digest() {
            Some(digest) => Some(reference.with_digest(digest)),
            None => reference.tagged(),
        });
        let has_name = |record: &ImageRecord| {
            record.id.to_string() == name
                || record.id.hex() == name
                || full
                    .as_ref()
                    .is_some_and(|full| record.tags.contains(full) || record.digests.contains(full))
        };
        self.damaged().find(|entry| has_name(&entry.record)).map(|entry| entry.record.id.clone())
    }

    /// Adds a user to an image that is not removed and not damaged.
    pub(super) fn add_user(&mut self, id: &Digest, user: &str) -> Result<(), Error> {
        let entry = self.images.get_mut(id).filter(|entry| entry.is_listed());
        let entry = entry.ok_or_else(|| Error::not_found(format!("image {id}"), "not in the store"))?;
        entry.users.push(user.to_owned());
        Ok(())
    }

    /// Adds a user at open, when a removed image may still have containers.
    pub(super) fn add_existing_user(&mut self, id: &Digest, user: &str) -> bool {
        match self.images.get_mut(id) {
            Some(entry) => {
                entry.users.push(user.to_owned());
                true
            }
            None => false,
        }
    }

    /// Removes a user. Returns whether the image can be collected.
    pub(super) fn drop_user(&mut self, id: &Digest, user: &str) -> bool {
        let Some(entry) = self.images.get_mut(id) else {
            return false;
        };
        if let Some(place) = entry.users.iter().position(|other| other == user) {
            entry.users.swap_remove(place);
        }
        entry.record.removed && entry.users.is_empty()
    }

    /// Adds a user to a layer that can be used. Returns whether the layer may need a patch above other layers.
    pub(super) fn add_reference(&mut self, key: &LayerKey) -> Option<bool> {
        let layer = self.layers.get_mut(key).filter(|layer| !layer.broken)?;
        layer.references += 1;
        Some(layer.depends_on_others)
    }

    pub(super) fn layer(&self, key: &LayerKey) -> Option<&LayerEntry> {
        self.layers.get(key)
    }

    /// Adds a layer. If it replaces a broken one, it takes over its users.
    pub(super) fn put_layer(&mut self, key: LayerKey, new: NewLayer) {
        let NewLayer { summary, usage, inode, durable, digested } = new;
        let LayerSummary { length, depends_on_others, .. } = summary;
        let references = self.layers.get(&key).map_or(0, |former| former.references);
        let broken = false;
        let entry =
            LayerEntry { length, depends_on_others, usage, inode, durable, digested, broken, references };
        self.layers.insert(key, entry);
    }

    /// Returns which of an image's layers have a patch above them, from the bottom up. It is known only
    /// for layers that another image has, too.
    pub(super) fn patched(&self, layers: &[&LayerKey]) -> Vec<bool> {
        let of = |entry: &ImageEntry| {
            let mut keys = entry.record.layers.iter().peekable();
            let mut patched = Vec::new();
            for key in layers {
                if keys.next() != Some(*key) {
                    break;
                }
                patched.push(keys.next_if(|key| matches!(key, LayerKey::Patch(_))).is_some());
            }
            patched
        };
        let whole = self.images.values().filter(|entry| entry.damage.is_none());
        whole.map(of).max_by_key(Vec::len).unwrap_or_default()
    }

    /// Removes a layer that cannot be trusted.
    pub(super) fn drop_layer(&mut self, key: &LayerKey) {
        self.layers.remove(key);
    }

    /// Marks the layers as synced to the disk. Returns those whose digest is not recorded yet.
    pub(super) fn set_durable(&mut self, keys: &[LayerKey]) -> Vec<LayerKey> {
        let mut undigested = Vec::new();
        for key in keys {
            if let Some(layer) = self.layers.get_mut(key) {
                layer.durable = true;
                undigested.extend((!layer.digested).then(|| key.clone()));
            }
        }
        undigested
    }

    pub(super) fn set_digested(&mut self, key: &LayerKey, usage: DiskUsage) {
        if let Some(layer) = self.layers.get_mut(key) {
            (layer.usage, layer.digested) = (usage, true);
        }
    }

    /// Marks a layer to be created again.
    pub(super) fn set_broken(&mut self, key: &LayerKey) {
        if let Some(layer) = self.layers.get_mut(key) {
            layer.broken = true;
        }
    }

    /// Removes a layer without users from the index. Returns its disk usage.
    pub(super) fn take_unused_layer(&mut self, key: &LayerKey) -> Option<DiskUsage> {
        self.layers.get(key).filter(|layer| layer.references == 0)?;
        self.layers.remove(key).map(|layer| layer.usage)
    }

    /// Returns the images and layers without users, at open.
    pub(super) fn unused(&self) -> (Vec<Digest>, Vec<LayerKey>) {
        let images = self.images.values().filter(|entry| entry.record.removed && entry.users.is_empty());
        let layers = self.layers.iter().filter(|(_, layer)| layer.references == 0);
        (images.map(|entry| entry.record.id.clone()).collect(), layers.map(|(key, _)| key.clone()).collect())
    }

    /// Returns the disk usage of images and layers.
    pub(super) fn image_usage(&self) -> DiskUsage {
        let images = self.images.values().map(|entry| entry.usage);
        let layers = self.layers.values().map(|layer| layer.usage);
        sum(images.chain(layers))
    }

    pub(super) fn container_usage(&self) -> DiskUsage {
        sum(self.containers.values().filter_map(|container| container.usage).map(|measured| measured.usage))
    }
}

/// Returns the name of a container among an image's users.
pub(super) fn user(container_id: &str) -> String {
    format!("{CONTAINER}{container_id}")
}
