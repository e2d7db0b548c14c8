//! Whether what is in the store is still what was put there.

use super::index::LayerKey;
use super::make::read_config;
use super::marker::{self, Spender};
use super::tree_digest::tree_digest;
use super::{ImageStore, Inner};
use crate::digest::Digest;
use crate::error::{Error, blocking};

/// What was found of one part of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is as it was.
    Sound,
    /// Its digest is being made in the background: it has come a moment ago.
    Unknown,
    /// It is not, and how that shows.
    Broken(String),
    /// It was not, and has been pulled again.
    Repaired(String),
}

/// A part of the store, and what was found of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// An image's configuration, a layer, or an image of which something is missing.
    pub what: String,
    /// The images that need it, by their names.
    pub images: Vec<String>,
    /// What was found.
    pub verdict: Verdict,
}

/// A part of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// An image that is not whole.
    Image(Digest),
    Config(Digest),
    Layer(LayerKey),
}

/// A part and what was found of it.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) part: Part,
    /// The images that need it.
    pub(super) images: Vec<Digest>,
    pub(super) verdict: Verdict,
}

impl ImageStore {
    /// Reads all images and layers, or those of one image, and compares them with their digests.
    ///
    /// # Errors
    /// There is no image of that name.
    pub async fn verify(&self, name: Option<&str>) -> Result<Vec<Verified>, Error> {
        let found = self.look_at(name).await?;
        Ok(self.inner().shown(found))
    }

    pub(super) async fn look_at(&self, name: Option<&str>) -> Result<Vec<Found>, Error> {
        let inner = self.inner().clone();
        let _spender = Spender::new(&inner);
        let ids = inner.chosen(name)?;
        // While they are looked at, nobody takes them away. Of one that is not whole there is nothing to keep.
        let holds: Vec<_> = ids.iter().filter_map(|id| self.hold_id(id, "verification").ok()).collect();
        let found = blocking("verify images", move || Ok(inner.verify(&ids))).await;
        drop(holds);
        found
    }
}

impl Inner {
    /// The images that a name stands for, or all.
    fn chosen(&self, name: Option<&str>) -> Result<Vec<Digest>, Error> {
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
        Ok(vec![id.ok_or_else(|| Error::not_found(format!("image {name}"), "it is not in the store"))?])
    }

    fn verify(&self, ids: &[Digest]) -> Vec<Found> {
        let mut found = Vec::new();
        let mut layers: Vec<(LayerKey, Vec<Digest>)> = Vec::new();
        for id in ids {
            let known = self.index().entry(id).map(|entry| (entry.record.clone(), entry.damage.clone()));
            let Some((record, damage)) = known else { continue };
            let (part, verdict) = match damage {
                Some(why) => (Part::Image(id.clone()), Verdict::Broken(why)),
                None => (Part::Config(id.clone()), of(read_config(&self.folders, id).map(drop))),
            };
            found.push(Found { part, images: vec![id.clone()], verdict });
            for key in record.layers {
                match layers.iter_mut().find(|(known, _)| *known == key) {
                    Some((_, images)) => images.push(id.clone()),
                    None => layers.push((key, vec![id.clone()])),
                }
            }
        }
        found.extend(layers.into_iter().filter_map(|(key, images)| {
            // What is missing altogether is said of the image.
            self.index().layer(&key)?;
            let verdict = self.verify_layer(&key);
            Some(Found { part: Part::Layer(key), images, verdict })
        }));
        found
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
                Verdict::Broken(format!("its files have the digest {tree} instead of {expected}"))
            }
            Ok(None) => Verdict::Unknown,
            Err(error) => Verdict::Broken(error.to_string()),
        }
    }

    /// What a person sees of it.
    pub(super) fn shown(&self, found: Vec<Found>) -> Vec<Verified> {
        let shown = found.into_iter().map(|Found { part, images, verdict }| {
            let what = match part {
                Part::Image(id) => format!("image {id}"),
                Part::Config(id) => format!("config {id}"),
                Part::Layer(key) => format!("layer {key}"),
            };
            Verified { what, images: images.iter().map(|id| self.name_of(id)).collect(), verdict }
        });
        shown.collect()
    }

    /// The name of an image that a person knows best.
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
