//! The OCI image layout (image-layout.md of the OCI image spec).

use std::collections::{BTreeMap, HashMap};

use super::source::Source;
use super::{ArchiveContent, ArchivedImage, ImageLocation, MAX_TAGS, Offer, Stored, read_small};
use crate::artifact;
use crate::config::MAX_CONFIG;
use crate::descriptor::{Annotations, Descriptor};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind};
use crate::manifest::{MAX_MANIFEST, Manifest, choose};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::registry::check_blob;

pub(super) const INDEX: &str = "index.json";
const MAX_NESTING: usize = 4;

/// Lists the images of the layout that run on `platform`.
pub(super) fn offers(source: &Source, platform: &Platform) -> Result<Vec<Offer>, Error> {
    let what = format!("{INDEX} of {}", source.name());
    let Manifest::Index(entries) = Manifest::parse(&what, None, &read_small(source, INDEX, MAX_MANIFEST)?)?
    else {
        return Err(Error::corrupt(what, "not an index"));
    };
    let mut offers: Vec<Offer> = Vec::new();
    let mut places = HashMap::new();
    let mut first_unsupported = None;
    for (tag, entry) in candidates(&what, entries, platform)? {
        match resolve(source, platform, &entry) {
            Ok(image) => {
                // The same image under two names is one image.
                let place = *places.entry(image.id).or_insert(offers.len());
                match offers.get_mut(place) {
                    Some(offer) => offer.tags.extend(tag),
                    None => offers
                        .push(Offer { tags: tag.into_iter().collect(), place: ImageLocation::Layout(entry) }),
                }
            }
            Err(error @ Error::Unsupported { .. }) => {
                tracing::warn!(%error, "skipped an unsupported entry of the layout");
                first_unsupported.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    if let Some(offer) = offers.iter().find(|offer| offer.tags.len() > MAX_TAGS) {
        let why = format!("an image with {} names, the limit is {MAX_TAGS}", offer.tags.len());
        return Err(Error::limit(what, why));
    }
    match (offers.is_empty(), first_unsupported) {
        (true, Some(error)) => Err(error),
        (true, None) => Err(Error::invalid(source.name(), "contains no image")),
        (false, _) => Ok(offers),
    }
}

/// Returns the entries to load, with their names. If entries share a name and differ by platform, the one for
/// this node is chosen.
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
    // A tag alone does not contain a repository.
    let whole = annotations.ref_name.as_ref().filter(|name| name.contains(['/', ':', '@']));
    full.or(whole).cloned()
}

/// Reads the manifest and the config of an image, and finds its layers.
pub(super) fn resolve(
    source: &Source,
    platform: &Platform,
    entry: &Descriptor,
) -> Result<ArchivedImage, Error> {
    let mut manifests = Vec::new();
    let mut entry = entry.clone();
    let mut platform_checked = false;
    for _ in 0..MAX_NESTING {
        platform_checked |=
            entry.specified_platform().is_some_and(|offered| platform.rank(&offered).is_some());
        let what = format!("manifest {} of {}", entry.digest, source.name());
        let bytes = blob(source, &entry, MAX_MANIFEST)?;
        manifests.push(entry.digest.clone());
        let media_type = Some(entry.media_type.as_str()).filter(|kind| !kind.is_empty());
        match Manifest::parse(&what, media_type, &bytes)? {
            Manifest::Artifact(artifact) => {
                let size = artifact::content_size(&artifact.blobs).saturating_add(entry.size);
                let content = ArchiveContent::Artifact(artifact);
                return Ok(ArchivedImage {
                    config_bytes: bytes,
                    id: entry.digest,
                    checkpoint: false,
                    content,
                    manifests,
                    size,
                    platform_checked,
                });
            }
            Manifest::Index(entries) => entry = choose(&what, &entries, platform)?,
            Manifest::Image(manifest) => {
                let size = manifest.content_size().saturating_add(entry.size);
                let config_bytes = blob(source, &manifest.config, MAX_CONFIG)?;
                let checkpoint = manifest.checkpoint;
                let layers = manifest
                    .layers
                    .into_iter()
                    .map(|layer| Stored { member: member(&layer.digest), blob: Some(layer) });
                let content = ArchiveContent::Image(layers.collect());
                let id = manifest.config.digest;
                return Ok(ArchivedImage {
                    checkpoint,
                    config_bytes,
                    id,
                    content,
                    manifests,
                    size,
                    platform_checked,
                });
            }
        }
    }
    let why = format!("more than {MAX_NESTING} nested indexes");
    Err(Error::unsupported(source.name(), why))
}

pub(super) fn member(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

fn blob(source: &Source, entry: &Descriptor, limit: u64) -> Result<Vec<u8>, Error> {
    let what = format!("blob {} of {}", entry.digest, source.name());
    let bytes = read_small(source, &member(&entry.digest), limit).map_err(|error| match error.kind() {
        // The archive is corrupt: the caller's request is not the cause.
        ErrorKind::NotFound => Error::corrupt(&what, "missing"),
        _ => error,
    })?;
    check_blob(&what, entry, &bytes)?;
    Ok(bytes)
}
