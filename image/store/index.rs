//! What is in the store and who uses it, in memory.
//!
//! An image uses its layers; containers and holds use images; a pull leases layers until its image is recorded. What
//! nobody uses is collected.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Weak};

use serde::{Deserialize, Serialize};

use super::Inner;
use super::reaper::Job;
use super::record::{ContainerRecord, DiskUsage, ImageRecord, LayerSummary};
use super::usage::Measured;
use crate::digest::{Algorithm, Digest};
use crate::error::Error;
use crate::image::Image;
use crate::reference::{Reference, is_hex_id};

/// The name of a layer's folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum LayerKey {
    /// A layer as it is, by its diff id.
    Diff(Digest),
    /// What the topmost layer of a chain takes from the ones below, by the chain's id (OCI image config, "ChainID").
    Patch(Digest),
    /// The files of an artifact, by its manifest.
    Artifact(Digest),
}

const PATCH: &str = "patch-";
const ARTIFACT: &str = "artifact-";

impl LayerKey {
    pub(crate) fn file_name(&self) -> String {
        match self {
            Self::Diff(digest) => digest.file_name(),
            Self::Patch(chain) => format!("{PATCH}{}", chain.file_name()),
            Self::Artifact(manifest) => format!("{ARTIFACT}{}", manifest.file_name()),
        }
    }
}

impl FromStr for LayerKey {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let invalid = || Error::invalid(format!("layer {name:?}"), "is not named by a digest");
        let key = if let Some(chain) = name.strip_prefix(PATCH) {
            Digest::from_file_name(chain).map(Self::Patch)
        } else if let Some(manifest) = name.strip_prefix(ARTIFACT) {
            Digest::from_file_name(manifest).map(Self::Artifact)
        } else {
            Digest::from_file_name(name).map(Self::Diff)
        };
        key.ok_or_else(invalid)
    }
}

impl TryFrom<String> for LayerKey {
    type Error = Error;

    fn try_from(name: String) -> Result<Self, Error> {
        name.parse()
    }
}

impl From<LayerKey> for String {
    fn from(key: LayerKey) -> Self {
        key.file_name()
    }
}

impl fmt::Display for LayerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file_name())
    }
}

/// An image and its use.
#[derive(Debug)]
pub(super) struct ImageEntry {
    pub(super) record: ImageRecord,
    pub(super) image: Arc<Image>,
    pub(super) usage: DiskUsage,
    /// Containers, and holds by their owners' names.
    users: Vec<String>,
}

/// A layer and its use.
#[derive(Debug)]
pub(super) struct LayerEntry {
    /// The length of its archive, if that can be made again.
    pub(super) length: Option<u64>,
    depends_on_others: bool,
    pub(super) usage: DiskUsage,
    references: usize,
}

/// A container's writable layer. Its images are unknown where a crash has left only a part of the folder.
#[derive(Clone, Debug)]
pub(super) struct ContainerEntry {
    pub(super) record: Option<ContainerRecord>,
    /// None before it is measured.
    pub(super) usage: Option<Measured>,
}

/// The store's contents.
#[derive(Debug, Default)]
pub(super) struct Index {
    images: BTreeMap<Digest, ImageEntry>,
    /// Tags and digest references, of images that are not removed.
    names: HashMap<String, Digest>,
    layers: HashMap<LayerKey, LayerEntry>,
    pub(super) containers: BTreeMap<String, ContainerEntry>,
}

impl Index {
    pub(super) fn list(&self) -> Vec<Arc<Image>> {
        let listed = self.images.values().filter(|entry| !entry.record.removed);
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
        let known = reference.and_then(|reference| match reference.digest() {
            Some(digest) => self.names.get(&reference.with_digest(digest)),
            None => self.names.get(&reference.tagged()?),
        });
        match known {
            Some(id) => by_id(id),
            None => self.by_prefix(name),
        }
    }

    /// The image whose id begins so, if there is one: people type as much of an id as makes it unique (crictl passes it on).
    fn by_prefix(&self, name: &str) -> Option<Arc<Image>> {
        let prefix = name.strip_prefix("sha256:").unwrap_or(name);
        if prefix.is_empty() {
            return None;
        }
        let mut fitting = self
            .images
            .values()
            .filter(|entry| !entry.record.removed && entry.record.id.hex().starts_with(prefix));
        let found = fitting.next()?;
        fitting.next().is_none().then(|| found.image.clone())
    }

    pub(super) fn entry(&self, id: &Digest) -> Option<&ImageEntry> {
        self.images.get(id)
    }

    fn listed(&self, id: &Digest) -> Option<&ImageEntry> {
        self.images.get(id).filter(|entry| !entry.record.removed)
    }

    /// The image that has a name now.
    pub(super) fn holder(&self, name: &str) -> Option<Digest> {
        self.names.get(name).cloned()
    }

    /// Puts an image in, or in the place of its former record. Its layers must be there.
    pub(super) fn put(
        &mut self,
        record: ImageRecord,
        image: Arc<Image>,
        usage: DiskUsage,
    ) -> Result<(), Error> {
        let lacking = record.layers.iter().find(|key| !self.layers.contains_key(key));
        if let Some(key) = lacking {
            return Err(Error::corrupt(
                format!("image {}", record.id),
                format!("its layer {key} is missing"),
            ));
        }
        for key in &record.layers {
            if let Some(layer) = self.layers.get_mut(key) {
                layer.references += 1;
            }
        }
        let id = record.id.clone();
        let former = self.images.remove(&id);
        if let Some(former) = &former {
            self.names.retain(|_, holder| *holder != id);
            self.unreference(&former.record.layers);
        }
        if !record.removed {
            for name in record.tags.iter().chain(&record.digests) {
                self.names.insert(name.clone(), id.clone());
            }
        }
        let users = former.map(|former| former.users).unwrap_or_default();
        self.images.insert(id, ImageEntry { record, image, usage, users });
        Ok(())
    }

    /// Takes a tag from an image.
    pub(super) fn without_tag(&mut self, id: &Digest, tag: &str) -> Result<(), Error> {
        let Some(entry) = self.images.get(id) else {
            return Ok(());
        };
        let (mut record, mut image, usage) = (entry.record.clone(), (*entry.image).clone(), entry.usage);
        record.tags.remove(tag);
        image.repo_tags.retain(|known| known != tag);
        self.put(record, Arc::new(image), usage)
    }

    fn unreference(&mut self, keys: &[LayerKey]) -> Vec<LayerKey> {
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

    /// Takes an image out if it is removed and nobody uses it; its layers that are of no further use are returned.
    pub(super) fn take_unused(&mut self, id: &Digest) -> Option<Vec<LayerKey>> {
        let entry = self.images.get(id).filter(|entry| entry.record.removed && entry.users.is_empty())?;
        let keys = entry.record.layers.clone();
        self.images.remove(id);
        Some(self.unreference(&keys))
    }

    /// Counts a user of an image that can be seen.
    pub(super) fn add_user(&mut self, id: &Digest, user: &str) -> Result<(), Error> {
        let entry = self.images.get_mut(id).filter(|entry| !entry.record.removed);
        let entry = entry.ok_or_else(|| Error::not_found(format!("image {id}"), "it is not in the store"))?;
        entry.users.push(user.to_owned());
        Ok(())
    }

    /// The same at open, where a removed image may still have containers.
    pub(super) fn add_known_user(&mut self, id: &Digest, user: &str) -> bool {
        match self.images.get_mut(id) {
            Some(entry) => {
                entry.users.push(user.to_owned());
                true
            }
            None => false,
        }
    }

    /// Ends a use. Whether the image can be collected now.
    pub(super) fn drop_user(&mut self, id: &Digest, user: &str) -> bool {
        let Some(entry) = self.images.get_mut(id) else {
            return false;
        };
        if let Some(place) = entry.users.iter().position(|known| known == user) {
            entry.users.swap_remove(place);
        }
        entry.record.removed && entry.users.is_empty()
    }

    pub(super) fn layer(&self, key: &LayerKey) -> Option<&LayerEntry> {
        self.layers.get(key)
    }

    pub(super) fn put_layer(&mut self, key: LayerKey, record: &LayerSummary, usage: DiskUsage) {
        let LayerSummary { length, depends_on_others, .. } = *record;
        let entry = LayerEntry { length, depends_on_others, usage, references: 0 };
        self.layers.insert(key, entry);
    }

    pub(super) fn set_layer_usage(&mut self, key: &LayerKey, usage: DiskUsage) {
        if let Some(layer) = self.layers.get_mut(key) {
            layer.usage = usage;
        }
    }

    /// Takes a layer out if nobody uses it.
    pub(super) fn take_unused_layer(&mut self, key: &LayerKey) -> bool {
        let unused = self.layers.get(key).is_some_and(|layer| layer.references == 0);
        if unused {
            self.layers.remove(key);
        }
        unused
    }

    /// All that nobody uses, as found at open.
    pub(super) fn unused(&self) -> (Vec<Digest>, Vec<LayerKey>) {
        let images = self.images.values().filter(|entry| entry.record.removed && entry.users.is_empty());
        let layers = self.layers.iter().filter(|(_, layer)| layer.references == 0);
        (images.map(|entry| entry.record.id.clone()).collect(), layers.map(|(key, _)| key.clone()).collect())
    }

    /// What images and layers take.
    pub(super) fn image_usage(&self) -> DiskUsage {
        let images = self.images.values().map(|entry| entry.usage);
        let layers = self.layers.values().map(|layer| layer.usage);
        sum(images.chain(layers))
    }

    pub(super) fn container_usage(&self) -> DiskUsage {
        sum(self.containers.values().filter_map(|container| container.usage).map(|measured| measured.usage))
    }
}

fn sum(parts: impl Iterator<Item = DiskUsage>) -> DiskUsage {
    parts.fold(DiskUsage::default(), |sum, part| DiskUsage {
        bytes: sum.bytes.saturating_add(part.bytes),
        inodes: sum.inodes.saturating_add(part.inodes),
    })
}

/// Keeps an image's layers on the disk until it is dropped.
pub struct Hold {
    inner: Weak<Inner>,
    id: Digest,
    owner: String,
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").field("image", &self.id).field("owner", &self.owner).finish()
    }
}

pub(super) fn hold(inner: &Arc<Inner>, id: &Digest, owner: &str) -> Result<Hold, Error> {
    let owner = format!("hold by {owner}");
    inner.index().add_user(id, &owner)?;
    Ok(Hold { inner: Arc::downgrade(inner), id: id.clone(), owner })
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.upgrade() {
            let collect = inner.index().drop_user(&self.id, &self.owner);
            if collect {
                inner.reaper.send(Job::Purge(self.id.clone()));
            }
        }
    }
}

/// Keeps one layer on the disk while the image that needs it is being made.
pub(crate) struct Lease {
    inner: Weak<Inner>,
    key: LayerKey,
    /// Whether the layer may look different above other layers.
    pub(super) depends_on_others: bool,
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lease").field(&self.key).finish()
    }
}

impl Lease {
    pub(crate) fn key(&self) -> &LayerKey {
        &self.key
    }
}

/// Leases a layer if it is there.
pub(super) fn lease(inner: &Arc<Inner>, key: &LayerKey) -> Option<Lease> {
    let mut index = inner.index();
    let layer = index.layers.get_mut(key)?;
    layer.references += 1;
    let depends_on_others = layer.depends_on_others;
    Some(Lease { inner: Arc::downgrade(inner), key: key.clone(), depends_on_others })
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.upgrade() {
            let unused = inner.index().unreference(std::slice::from_ref(&self.key));
            if !unused.is_empty() {
                inner.reaper.send(Job::Collect(unused));
            }
        }
    }
}
