//! What is written down of images, layers and containers' layers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use super::index::LayerKey;
use crate::digest::Digest;
use crate::image::Image;
use crate::import::{self, Notes};
use crate::reference::Reference;
use crate::unpack::TreePath;

/// `images/<id>/image.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) id: Digest,
    pub(crate) tags: BTreeSet<String>,
    pub(crate) digests: BTreeSet<String>,
    pub(crate) manifests: BTreeSet<Digest>,
    pub(crate) size: u64,
    /// Diff ids, the bottom one first.
    pub(crate) diff_ids: Vec<Digest>,
    /// The folders that make the image, the bottom one first: those of the diff ids, and patches above some of them.
    pub(crate) layers: Vec<LayerKey>,
    /// It has been removed, and stays only for the containers that run on it.
    #[serde(default)]
    pub(crate) removed: bool,
}

impl ImageRecord {
    /// What callers see of it.
    pub(crate) fn image(&self, config: ImageConfiguration, pinned: bool) -> Arc<Image> {
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
        })
    }

    /// Whether the kubelet is told to leave it alone: one of its names is pinned, or it came from the import folder.
    pub(crate) fn is_pinned(&self, names: &[Reference], imported: &Notes) -> bool {
        let named = |pinned: &Reference| {
            let pinned = pinned.to_string();
            self.tags.contains(&pinned) || self.digests.contains(&pinned)
        };
        names.iter().any(named) || import::images_of(imported).contains(&self.id)
    }

    /// Whether it is files to be mounted; what is kept as its configuration is then its manifest.
    pub(crate) fn is_artifact(&self) -> bool {
        matches!(self.layers.as_slice(), [LayerKey::Artifact(_)])
    }
}

/// `layers/<key>/layer.json`, written with the layer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    /// The boot in which it was unpacked: in that one the page cache has what the disk may not.
    pub(crate) boot_id: String,
    pub(crate) usage: DiskUsage,
    /// Folders that the layer does not list.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) implicit: BTreeSet<TreePath>,
    /// The length of its archive, which can be made again where there is a recipe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) length: Option<u64>,
    /// Hard links to files that are in layers below.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) links: BTreeMap<TreePath, TreePath>,
}

impl LayerRecord {
    /// Whether the layer may look different above other layers.
    pub(super) fn depends_on_others(&self) -> bool {
        !self.links.is_empty() || !self.implicit.is_empty()
    }
}

/// What a folder takes, as `du` counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskUsage {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

/// `layers/<key>/synced`, written when the layer's content is on the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Synced {
    #[serde(flatten)]
    pub(crate) usage: DiskUsage,
    /// The digest of the files, by which a later change shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tree: Option<Digest>,
}

/// `containers/<id>/layer.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) image: Digest,
    /// Images that are mounted in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) volumes: Vec<Digest>,
}

impl ContainerRecord {
    /// All images that it uses.
    pub(super) fn images(&self) -> impl Iterator<Item = &Digest> {
        std::iter::once(&self.image).chain(&self.volumes)
    }
}
