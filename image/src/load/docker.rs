//! The docker-archive: the format of `docker save` before version 25, which many tools still write (docker's
//! image specification v1.2, "Combined image JSON + filesystem changeset format").

use serde::Deserialize;

use super::source::Source;
use super::{ArchiveContent, ArchivedImage, ImageLocation, MAX_IMAGES, MAX_TAGS, Offer, Stored, read_small};
use crate::bounded::Bounded;
use crate::config::MAX_CONFIG;
use crate::config::MAX_LAYERS;
use crate::digest::{Algorithm, Digest};
use crate::error::Error;
use crate::manifest::MAX_MANIFEST;
use crate::reference::Reference;

pub(super) const MANIFEST: &str = "manifest.json";

/// One image of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ManifestEntry {
    config: String,
    #[serde(default)]
    repo_tags: Bounded<String, MAX_TAGS>,
    #[serde(default)]
    layers: Bounded<String, MAX_LAYERS>,
}

/// Lists the images of the archive. Their layers are verified by the diff ids of their configs.
pub(super) fn offers(source: &Source) -> Result<Vec<Offer>, Error> {
    let what = format!("{MANIFEST} of {}", source.name());
    let bytes = read_small(source, MANIFEST, MAX_MANIFEST)?;
    let entries: Bounded<ManifestEntry, MAX_IMAGES> =
        berth_json::from_slice(&bytes).map_err(|error| Error::corrupt(what.as_str(), error))?;
    let entries = entries.all(&what, "images")?;
    if entries.is_empty() {
        return Err(Error::invalid(source.name(), "contains no image"));
    }
    entries.into_iter().map(|entry| offer(source, &what, entry)).collect()
}

fn offer(source: &Source, what: &str, entry: ManifestEntry) -> Result<Offer, Error> {
    let tags = entry.repo_tags.all(what, "names of one image")?;
    let tags = tags.iter().map(|tag| tag.parse::<Reference>()).collect::<Result<Vec<_>, _>>();
    let layers = entry.layers.all(what, "layers")?;
    // Missing members are reported before anything is loaded.
    for member in layers.iter().chain([&entry.config]) {
        source.length(member)?;
    }
    let place = ImageLocation::Docker { config: entry.config, layers };
    Ok(Offer { tags: tags.map_err(|error| Error::corrupt(what, error))?, place })
}

/// Reads the config of an image and finds its layers.
pub(super) fn resolve(source: &Source, config: &str, layers: &[String]) -> Result<ArchivedImage, Error> {
    let config_bytes = read_small(source, config, MAX_CONFIG)?;
    let mut size = u64::try_from(config_bytes.len()).unwrap_or(u64::MAX);
    let mut stored = Vec::new();
    for member in layers {
        size = size.saturating_add(source.length(member)?);
        stored.push(Stored { member: member.clone(), blob: None });
    }
    Ok(ArchivedImage {
        id: Digest::of(Algorithm::Sha256, &config_bytes),
        config_bytes,
        content: ArchiveContent::Image(stored),
        manifests: Vec::new(),
        checkpoint: false,
        size,
        platform_checked: false,
    })
}
