//! What is written down of images, layers and containers' layers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::index::LayerKey;
use super::make::Names;
use crate::bounded::{Few, FewKeys};
use crate::config::ImageConfig;
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
    /// Marks of the signatures of it that were verified: what a policy wants again needs no registry.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) verified: BTreeSet<String>,
    /// The archives that it came from, as transport and path.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) origins: BTreeSet<String>,
    /// It has been removed, and stays only for the containers that run on it.
    #[serde(default)]
    pub(crate) removed: bool,
    /// The record was written when the layers' content was on the disk: they are trusted in another boot, too.
    #[serde(default)]
    pub(crate) synced: bool,
    /// Grows with each change of any record. Where a cut has left a tag with two images, the later record has it; clocks
    /// may have been set back.
    #[serde(default)]
    pub(crate) change: u64,
}

/// The most digest references and manifests that are kept of one image. A registry may serve the same image by another
/// manifest at each pull.
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
            removed: false,
            synced: false,
            change: 0,
        }
    }

    /// Gives it more names. Of digests and manifests older ones make room for these.
    pub(super) fn add(&mut self, names: Names) {
        self.tags.extend(names.tags);
        add_some(&mut self.digests, names.digests);
        add_some(&mut self.manifests, names.manifests);
        add_some(&mut self.verified, names.verified);
        add_some(&mut self.origins, names.origins);
    }

    /// What callers see of it.
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

fn add_some<T: Ord + Clone>(known: &mut BTreeSet<T>, new: Vec<T>) {
    known.extend(new.iter().cloned());
    let surplus = known.len().saturating_sub(MAX_MANIFESTS);
    let old: Vec<T> = known.iter().filter(|one| !new.contains(one)).take(surplus).cloned().collect();
    for one in old {
        known.remove(&one);
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
    /// What is kept in memory of it.
    pub(super) fn summary(&self) -> LayerSummary {
        LayerSummary {
            boot_id: self.boot_id.clone(),
            usage: self.usage,
            length: self.length,
            depends_on_others: !self.links.is_empty() || !self.implicit.is_empty(),
        }
    }
}

/// What is kept in memory of a [`LayerRecord`]: neither folders nor links, which a stranger has written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "Skimmed")]
pub(crate) struct LayerSummary {
    pub(crate) boot_id: String,
    pub(crate) usage: DiskUsage,
    pub(crate) length: Option<u64>,
    /// Whether the layer may look different above other layers.
    pub(crate) depends_on_others: bool,
}

/// A [`LayerRecord`] that is read without its folders and links.
#[derive(Deserialize)]
struct Skimmed {
    boot_id: String,
    usage: DiskUsage,
    #[serde(default)]
    implicit: Few<IgnoredAny, 0>,
    length: Option<u64>,
    #[serde(default)]
    links: FewKeys<0>,
}

impl From<Skimmed> for LayerSummary {
    fn from(record: Skimmed) -> Self {
        let Skimmed { boot_id, usage, implicit, length, links } = record;
        Self { boot_id, usage, length, depends_on_others: !implicit.is_empty() || !links.is_empty() }
    }
}

/// What a folder takes, as `du` counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskUsage {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

impl DiskUsage {
    pub(super) fn without(self, part: Self) -> Self {
        Self { bytes: self.bytes.saturating_sub(part.bytes), inodes: self.inodes.saturating_sub(part.inodes) }
    }
}

/// `layers/<key>/synced`, written when the layer's content is on the disk: what it takes without this file, and what it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Synced {
    #[serde(flatten)]
    pub(crate) usage: DiskUsage,
    /// The digest of the files, by which a later change shows. What stands under `tree` or `files` was made in another way.
    #[serde(default, rename = "content", skip_serializing_if = "Option::is_none")]
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    #[test]
    fn the_summary_is_read_without_what_is_left_out() {
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
    fn an_image_that_is_served_by_ever_new_manifests_keeps_the_newest() {
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
