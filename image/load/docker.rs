//! The format of `docker save` before version 25, which many tools write still (docker's image specification v1.2,
//! "Combined image JSON + filesystem changeset format").

use serde::Deserialize;

use super::source::Source;
use super::{Content, Offer, Stored, read_small};
use crate::config::MAX_CONFIG;
use crate::digest::{Algorithm, Digest};
use crate::error::Error;
use crate::manifest::MAX_MANIFEST;
use crate::reference::Reference;

pub(super) const MANIFEST: &str = "manifest.json";

/// One image of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

/// The images of the archive. Their layers are checked by the diff ids of their configs.
pub(super) fn offers(source: &Source) -> Result<Vec<Offer>, Error> {
    let what = format!("{MANIFEST} of {}", source.name());
    let bytes = read_small(source, MANIFEST, MAX_MANIFEST)?;
    let entries: Vec<Entry> =
        serde_json::from_slice(&bytes).map_err(|error| Error::corrupt(what.as_str(), error))?;
    if entries.is_empty() {
        return Err(Error::invalid(source.name(), "holds no image"));
    }
    entries.into_iter().map(|entry| offer(source, &what, entry)).collect()
}

fn offer(source: &Source, what: &str, entry: Entry) -> Result<Offer, Error> {
    let config_bytes = read_small(source, &entry.config, MAX_CONFIG)?;
    let tags = entry.repo_tags.unwrap_or_default();
    let tags = tags.iter().map(|tag| tag.parse::<Reference>()).collect::<Result<Vec<_>, _>>();
    let members = entry.layers.unwrap_or_default();
    let mut size = u64::try_from(config_bytes.len()).unwrap_or(u64::MAX);
    let mut layers = Vec::new();
    for member in members {
        let length = source.length(&member)?;
        size = size.saturating_add(length);
        layers.push(Stored { member, blob: None });
    }
    Ok(Offer {
        id: Digest::of(Algorithm::Sha256, &config_bytes),
        config_bytes,
        content: Content::Image(layers),
        tags: tags.map_err(|error| Error::corrupt(what, error))?,
        manifests: Vec::new(),
        size,
    })
}
