//! The OCI image layout (image-layout.md of the OCI image spec).

use std::collections::{BTreeMap, HashMap};

use super::source::Source;
use super::{Content, Found, MAX_TAGS, Offer, Place, Stored, read_small};
use crate::artifact;
use crate::config::MAX_CONFIG;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind};
use crate::manifest::{Annotations, Descriptor, MAX_MANIFEST, Manifest, choose};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::registry::check_blob;

pub(super) const INDEX: &str = "index.json";
const MAX_NESTING: usize = 4;

/// The images of the layout that run on `platform`.
pub(super) fn offers(source: &Source, platform: &Platform) -> Result<Vec<Offer>, Error> {
    let what = format!("{INDEX} of {}", source.name());
    let Manifest::Index(entries) = Manifest::parse(&what, None, &read_small(source, INDEX, MAX_MANIFEST)?)?
    else {
        return Err(Error::corrupt(what, "is no index"));
    };
    let mut offers: Vec<Offer> = Vec::new();
    let mut places = HashMap::new();
    let mut refused = None;
    for (tag, entry) in candidates(&what, entries, platform)? {
        match find(source, platform, &entry) {
            Ok(found) => {
                // The same image under two names is one image.
                let place = *places.entry(found.id).or_insert(offers.len());
                match offers.get_mut(place) {
                    Some(known) => known.tags.extend(tag),
                    None => {
                        offers.push(Offer { tags: tag.into_iter().collect(), place: Place::Layout(entry) })
                    }
                }
            }
            Err(error @ Error::Unsupported { .. }) => {
                tracing::warn!(%error, "an entry of the layout is left out");
                refused.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    if let Some(offer) = offers.iter().find(|offer| offer.tags.len() > MAX_TAGS) {
        let why = format!("an image with {} names, the limit is {MAX_TAGS}", offer.tags.len());
        return Err(Error::limit(what, why));
    }
    match (offers.is_empty(), refused) {
        (true, Some(error)) => Err(error),
        (true, None) => Err(Error::invalid(source.name(), "holds no image")),
        (false, _) => Ok(offers),
    }
}

/// The entries to load with their names: of several that share a name and differ by platform, the one for this node.
fn candidates(
    what: &str,
    entries: Vec<Descriptor>,
    platform: &Platform,
) -> Result<Vec<(Option<Reference>, Descriptor)>, Error> {
    let mut groups: BTreeMap<Option<String>, Vec<Descriptor>> = BTreeMap::new();
    for entry in entries {
        groups.entry(name(&entry.annotations)).or_default().push(entry);
    }
    let mut found = Vec::new();
    for (name, group) in groups {
        let tag = name.map(|name| name.parse::<Reference>()).transpose()?;
        let by_platform = group.len() > 1 && group.iter().all(|entry| entry.platform.is_some());
        if by_platform {
            found.push((tag, choose(what, &group, platform)?));
        } else {
            found.extend(group.into_iter().map(|entry| (tag.clone(), entry)));
        }
    }
    Ok(found)
}

fn name(annotations: &Annotations) -> Option<String> {
    let full = annotations.full_name.as_ref();
    // A bare tag names no repository.
    let whole = annotations.ref_name.as_ref().filter(|name| name.contains(['/', ':', '@']));
    full.or(whole).cloned()
}

/// What an image is made of.
pub(super) fn find(source: &Source, platform: &Platform, entry: &Descriptor) -> Result<Found, Error> {
    let mut manifests = Vec::new();
    let mut entry = entry.clone();
    let mut fits = false;
    for _ in 0..MAX_NESTING {
        fits |= entry.told_platform().is_some_and(|told| platform.rank(&told).is_some());
        let what = format!("manifest {} of {}", entry.digest, source.name());
        let bytes = blob(source, &entry, MAX_MANIFEST)?;
        manifests.push(entry.digest.clone());
        let media_type = Some(entry.media_type.as_str()).filter(|kind| !kind.is_empty());
        match Manifest::parse(&what, media_type, &bytes)? {
            Manifest::Artifact(artifact) => {
                let size = artifact::content_size(&artifact.blobs).saturating_add(entry.size);
                let content = Content::Artifact(artifact);
                return Ok(Found { config_bytes: bytes, id: entry.digest, content, manifests, size, fits });
            }
            Manifest::Index(entries) => entry = choose(&what, &entries, platform)?,
            Manifest::Image(manifest) => {
                let size = manifest.content_size().saturating_add(entry.size);
                let config_bytes = blob(source, &manifest.config, MAX_CONFIG)?;
                let layers = manifest
                    .layers
                    .into_iter()
                    .map(|layer| Stored { member: member(&layer.digest), blob: Some(layer) });
                let content = Content::Image(layers.collect());
                let id = manifest.config.digest;
                return Ok(Found { config_bytes, id, content, manifests, size, fits });
            }
        }
    }
    let why = format!("more than {MAX_NESTING} indexes are nested in one another");
    Err(Error::unsupported(source.name(), why))
}

pub(super) fn member(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

fn blob(source: &Source, entry: &Descriptor, limit: u64) -> Result<Vec<u8>, Error> {
    let what = format!("blob {} of {}", entry.digest, source.name());
    let bytes = read_small(source, &member(&entry.digest), limit).map_err(|error| match error.kind() {
        // The archive's fault, not that of who asks for the image.
        ErrorKind::NotFound => Error::corrupt(&what, "is missing"),
        _ => error,
    })?;
    check_blob(&what, entry, &bytes)?;
    Ok(bytes)
}
