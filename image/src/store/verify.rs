//! Verifies that the content of the store has not changed.

use super::layer_key::LayerKey;
use super::make::read_config;
use super::marker::{self, MemoryUser};
use super::tree_digest::tree_digest;
use super::{ImageStore, Inner};
use crate::digest::Digest;
use crate::error::{Error, blocking};

/// The result of the verification of one part of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is unchanged.
    Sound,
    /// It is new, and its digest is still being computed in the background.
    Unknown,
    /// It has changed or is missing, with the reason.
    Broken(String),
    /// It was broken and has been pulled again, with the former reason.
    Repaired(String),
}

/// A part of the store, and the result of its verification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The config of an image, a layer, or a damaged image.
    pub what: String,
    /// The names of the images that use it.
    pub images: Vec<String>,
    /// Whether the content has the recorded digest.
    pub verdict: Verdict,
}

/// A part of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// A damaged image.
    Image(Digest),
    Config(Digest),
    Layer(LayerKey),
}

/// A part, and the result of its verification.
#[derive(Clone, Debug)]
pub(super) struct CheckedPart {
    pub(super) part: Part,
    /// The images that use it.
    pub(super) images: Vec<Digest>,
    pub(super) verdict: Verdict,
}

impl ImageStore {
    /// Reads all images and layers, or those of one image, and compares them with their digests.
    ///
    /// # Errors
    /// The image does not exist.
    pub async fn verify(&self, name: Option<&str>) -> Result<Vec<Verified>, Error> {
        let parts = self.check_parts(name).await?;
        Ok(self.inner().shown(parts))
    }

    pub(super) async fn check_parts(&self, name: Option<&str>) -> Result<Vec<CheckedPart>, Error> {
        let inner = self.inner().clone();
        let _memory_user = MemoryUser::new(&inner);
        let ids = inner.selected(name)?;
        // The images are held while they are read. A damaged image cannot be held.
        let holds: Vec<_> = ids.iter().filter_map(|id| self.hold_id(id, "verification").ok()).collect();
        let parts = blocking("verify images", move || Ok(inner.verify(&ids))).await;
        drop(holds);
        parts
    }
}

impl Inner {
    /// Returns the image of a name, or all images.
    fn selected(&self, name: Option<&str>) -> Result<Vec<Digest>, Error> {
        let Some(name) = name else {
            let index = self.index();
            let whole: Vec<_> = index.list().iter().map(|image| image.id.clone()).collect();
            return Ok(whole
                .into_iter()
                .chain(index.damaged().map(|entry| entry.record.id.clone()))
                .collect());
        };
        let id = self.resolve(name).map(|image| image.id.clone());
        let id = id.or_else(|| self.index().resolve_damaged(name));
        Ok(vec![id.ok_or_else(|| Error::not_found(format!("image {name}"), "not in the store"))?])
    }

    fn verify(&self, ids: &[Digest]) -> Vec<CheckedPart> {
        let mut parts = Vec::new();
        let mut layers: Vec<(LayerKey, Vec<Digest>)> = Vec::new();
        for id in ids {
            let entry = self.index().entry(id).map(|entry| (entry.record.clone(), entry.damage.clone()));
            let Some((record, damage)) = entry else { continue };
            let (part, verdict) = match damage {
                Some(why) => (Part::Image(id.clone()), Verdict::Broken(why)),
                None => (Part::Config(id.clone()), of(read_config(&self.folders, id).map(drop))),
            };
            parts.push(CheckedPart { part, images: vec![id.clone()], verdict });
            for key in record.layers {
                match layers.iter_mut().find(|(other, _)| *other == key) {
                    Some((_, images)) => images.push(id.clone()),
                    None => layers.push((key, vec![id.clone()])),
                }
            }
        }
        parts.extend(layers.into_iter().filter_map(|(key, images)| {
            // A missing layer is reported with its image.
            self.index().layer(&key)?;
            let verdict = self.verify_layer(&key);
            Some(CheckedPart { part: Part::Layer(key), images, verdict })
        }));
        parts
    }

    fn verify_layer(&self, key: &LayerKey) -> Verdict {
        let Some(expected) = marker::read(&self.folders.layer(key)).ok().and_then(|synced| synced.tree)
        else {
            let fs = self.folders.layer_fs(key);
            return match std::fs::symlink_metadata(&fs) {
                Ok(_) => Verdict::Unknown,
                Err(error) => Verdict::Broken(Error::io("read", &fs, error).to_string()),
            };
        };
        match tree_digest(&self.folders.layer_fs(key), &|| false) {
            Ok(Some(tree)) if tree == expected => Verdict::Sound,
            Ok(Some(tree)) => {
                Verdict::Broken(format!("the digest of its files is {tree} instead of {expected}"))
            }
            Ok(None) => Verdict::Unknown,
            Err(error) => Verdict::Broken(error.to_string()),
        }
    }

    /// Converts the results to their public form.
    pub(super) fn shown(&self, parts: Vec<CheckedPart>) -> Vec<Verified> {
        let shown = parts.into_iter().map(|CheckedPart { part, images, verdict }| {
            let what = match part {
                Part::Image(id) => format!("image {id}"),
                Part::Config(id) => format!("config {id}"),
                Part::Layer(key) => format!("layer {key}"),
            };
            Verified { what, images: images.iter().map(|id| self.name_of(id)).collect(), verdict }
        });
        shown.collect()
    }

    /// Returns a name of an image to show: a tag, a reference with a digest, or the id.
    fn name_of(&self, id: &Digest) -> String {
        let index = self.index();
        let record = index.entry(id).map(|entry| &entry.record);
        let name = record.and_then(|record| record.tags.first().or(record.digests.first()));
        name.cloned().unwrap_or(id.to_string())
    }
}

fn of(result: Result<(), Error>) -> Verdict {
    match result {
        Ok(()) => Verdict::Sound,
        Err(error) => Verdict::Broken(error.to_string()),
    }
}
