//! The records of images, layers and writable layers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::disk_usage::DiskUsage;
use super::imports::{Imports, images_of};
use super::layer_key::LayerKey;
use super::names::Names;
use crate::bounded::{Bounded, BoundedKeys};
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::image::Image;
use crate::reference::Reference;
use crate::unpack::TreePath;

/// The record of an image, `images/<id>/image.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) id: Digest,
    pub(crate) tags: BTreeSet<String>,
    pub(crate) digests: BTreeSet<String>,
    pub(crate) manifests: BTreeSet<Digest>,
    pub(crate) size: u64,
    /// The diff ids, the bottom one first.
    pub(crate) diff_ids: Vec<Digest>,
    /// The folders of the image, the bottom one first: those of the diff ids, and patches above some of them.
    pub(crate) layers: Vec<LayerKey>,
    /// The marks of verified signatures. A policy that requires them again needs no registry.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) verified: BTreeSet<String>,
    /// The archives that it was loaded from, as transport and path.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) origins: BTreeSet<String>,
    /// A manifest marks it as the checkpoint of a container.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) checkpoint: bool,
    /// It was removed, and is kept only for the containers that use it.
    #[serde(default)]
    pub(crate) removed: bool,
    /// The record was written after the layers were synced: they are trusted after a reboot.
    #[serde(default)]
    pub(crate) synced: bool,
    /// Increases with each change of any record. If a power failure has left a tag with two images, the later
    /// record keeps it. Times would not do: clocks may be set back.
    #[serde(default)]
    pub(crate) change: u64,
}

/// The most digest references and manifests that are kept of one image. A registry may serve the same image
/// by a different manifest at each pull.
const MAX_MANIFESTS: usize = 256;

impl ImageRecord {
    pub(super) fn new(id: Digest) -> Self {
        Self {
            id,
            tags: BTreeSet::new(),
            digests: BTreeSet::new(),
            manifests: BTreeSet::new(),
            size: 0,
            diff_ids: Vec::new(),
            layers: Vec::new(),
            verified: BTreeSet::new(),
            origins: BTreeSet::new(),
            checkpoint: false,
            removed: false,
            synced: false,
            change: 0,
        }
    }

    /// Adds names. If there are too many digests or manifests, older ones are dropped.
    pub(super) fn add(&mut self, names: Names) {
        self.tags.extend(names.tags);
        add_bounded(&mut self.digests, names.digests);
        add_bounded(&mut self.manifests, names.manifests);
        add_bounded(&mut self.verified, names.verified);
        add_bounded(&mut self.origins, names.origins);
        self.checkpoint |= names.checkpoint;
    }

    /// Returns the public form of the image.
    pub(crate) fn image(&self, config: ImageConfig, pinned: bool) -> Arc<Image> {
        Arc::new(Image {
            id: self.id.clone(),
            repo_tags: self.tags.iter().cloned().collect(),
            repo_digests: self.digests.iter().cloned().collect(),
            size: self.size,
            config,
            layers: self.diff_ids.clone(),
            pinned,
            artifact: self.is_artifact(),
            manifests: self.manifests.iter().cloned().collect(),
            checkpoint: self.checkpoint,
        })
    }

    /// Returns whether the kubelet must not collect the image: one of its names is pinned, or it is from the
    /// import folder.
    pub(crate) fn is_pinned(&self, names: &[Reference], imported: &Imports) -> bool {
        let named = |pinned: &Reference| {
            let pinned = pinned.to_string();
            self.tags.contains(&pinned) || self.digests.contains(&pinned)
        };
        names.iter().any(named) || images_of(imported).contains(&self.id)
    }

    /// Returns whether it is an artifact. Its stored config is then its manifest.
    pub(crate) fn is_artifact(&self) -> bool {
        matches!(self.layers.as_slice(), [LayerKey::Artifact(_)])
    }
}

fn add_bounded<T: Ord + Clone>(set: &mut BTreeSet<T>, new: Vec<T>) {
    set.extend(new.iter().cloned());
    let surplus = set.len().saturating_sub(MAX_MANIFESTS);
    let old: Vec<T> = set.iter().filter(|one| !new.contains(one)).take(surplus).cloned().collect();
    for one in old {
        set.remove(&one);
    }
}

/// The record of a layer, `layers/<key>/layer.json`, written with the layer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    /// The boot in which it was unpacked. Until a reboot, files that are not on the disk are in the page
    /// cache.
    pub(crate) boot_id: String,
    pub(crate) usage: DiskUsage,
    /// The folders that the layer does not list.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) implicit: BTreeSet<TreePath>,
    /// The length of its archive, which can be rebuilt if there is a recipe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) length: Option<u64>,
    /// The hard links to files of layers below.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) links: BTreeMap<TreePath, TreePath>,
}

impl LayerRecord {
    /// Returns the part that is kept in memory.
    pub(super) fn summary(&self) -> LayerSummary {
        LayerSummary {
            boot_id: self.boot_id.clone(),
            usage: self.usage,
            length: self.length,
            depends_on_others: !self.links.is_empty() || !self.implicit.is_empty(),
        }
    }
}

/// The part of a [`LayerRecord`] that is kept in memory. The untrusted folders and links are not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "PartialLayerRecord")]
pub(crate) struct LayerSummary {
    pub(crate) boot_id: String,
    pub(crate) usage: DiskUsage,
    pub(crate) length: Option<u64>,
    /// Whether the layer may need a patch above other layers.
    pub(crate) depends_on_others: bool,
}

/// A [`LayerRecord`] that is parsed without its folders and links.
#[derive(Deserialize)]
struct PartialLayerRecord {
    boot_id: String,
    usage: DiskUsage,
    #[serde(default)]
    implicit: Bounded<IgnoredAny, 0>,
    length: Option<u64>,
    #[serde(default)]
    links: BoundedKeys<0>,
}

impl From<PartialLayerRecord> for LayerSummary {
    fn from(record: PartialLayerRecord) -> Self {
        let PartialLayerRecord { boot_id, usage, implicit, length, links } = record;
        Self { boot_id, usage, length, depends_on_others: !implicit.is_empty() || !links.is_empty() }
    }
}

/// The marker `layers/<key>/synced`, written after the layer's content is on the disk: its usage without this
/// file, and its digest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Synced {
    #[serde(flatten)]
    pub(crate) usage: DiskUsage,
    /// The digest of the files, by which later changes are detected. The keys `tree` and `files` were used by
    /// other algorithms.
    #[serde(default, rename = "content", skip_serializing_if = "Option::is_none")]
    pub(crate) tree: Option<Digest>,
}

/// The record of a writable layer, `containers/<id>/layer.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) image: Digest,
    /// The images that are mounted in the container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) volumes: Vec<Digest>,
}

impl ContainerRecord {
    /// Returns all images that the container uses.
    pub(super) fn images(&self) -> impl Iterator<Item = &Digest> {
        std::iter::once(&self.image).chain(&self.volumes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    #[test]
    fn the_summary_is_that_of_the_whole_record() {
        let path = |name: &str| TreePath::parse(name.as_bytes()).unwrap();
        let usage = DiskUsage { bytes: 1, inodes: 2 };
        let plain = LayerRecord { boot_id: "b".into(), usage, length: Some(3), ..LayerRecord::default() };
        let implicit = LayerRecord { implicit: [path("a")].into(), ..plain.clone() };
        let linked = LayerRecord { links: [(path("a"), path("b"))].into(), ..plain.clone() };
        for record in [plain, implicit, linked] {
            let json = serde_json::to_string(&record).unwrap();
            assert_eq!(serde_json::from_str::<LayerSummary>(&json).unwrap(), record.summary(), "{json}");
        }
    }

    #[test]
    fn an_image_with_many_manifests_keeps_the_newest() {
        let digest = |number: u32| Digest::of(Algorithm::Sha256, &number.to_le_bytes());
        let mut record = ImageRecord::new(digest(0));
        for number in 0..1000 {
            let names = Names {
                tags: vec!["r.example/a:1".to_owned()],
                digests: vec![format!("r.example/a@{}", digest(number))],
                manifests: vec![digest(number)],
                ..Names::default()
            };
            record.add(names.clone());
            assert!(record.manifests.contains(&digest(number)) && record.digests.contains(&names.digests[0]));
        }
        assert_eq!((record.tags.len(), record.digests.len(), record.manifests.len()), (1, 256, 256));
    }
}
