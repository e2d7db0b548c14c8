//! Whether what is in the store is still what was put there.

use super::folders::read_json;
use super::index::LayerKey;
use super::make::read_config;
use super::reaper::Spender;
use super::record::Synced;
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
}

/// A part of the store, and what was found of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// An image's configuration, or a layer.
    pub what: String,
    /// The images that need it, by their names.
    pub images: Vec<String>,
    /// What was found.
    pub verdict: Verdict,
}

impl ImageStore {
    /// Reads all images and layers, or those of one image, and compares them with their digests.
    ///
    /// # Errors
    /// There is no image of that name.
    pub async fn verify(&self, name: Option<&str>) -> Result<Vec<Verified>, Error> {
        let inner = self.inner().clone();
        let _spender = Spender::new(&inner);
        let images = match name {
            Some(name) => {
                let image = self.resolve(name);
                vec![
                    image
                        .ok_or_else(|| Error::not_found(format!("image {name}"), "it is not in the store"))?,
                ]
            }
            None => self.list(),
        };
        // While they are looked at, nobody takes them away.
        let mut holds = Vec::new();
        for image in &images {
            holds.push(self.hold(image, "verification")?);
        }
        let ids: Vec<Digest> = images.iter().map(|image| image.id.clone()).collect();
        let verified = blocking("verify images", move || Ok(inner.verify(&ids))).await;
        drop(holds);
        verified
    }
}

impl Inner {
    fn verify(&self, ids: &[Digest]) -> Vec<Verified> {
        let mut found = Vec::new();
        let mut layers: Vec<(LayerKey, Vec<String>)> = Vec::new();
        for id in ids {
            let record = self.index().entry(id).map(|entry| entry.record.clone());
            let Some(record) = record else { continue };
            let name = record.tags.first().or(record.digests.first()).cloned().unwrap_or(id.to_string());
            let verdict = match read_config(&self.folders, id) {
                Ok(_bytes) => Verdict::Sound,
                Err(error) => Verdict::Broken(error.to_string()),
            };
            found.push(Verified { what: format!("config {id}"), images: vec![name.clone()], verdict });
            for key in record.layers {
                match layers.iter_mut().find(|(known, _)| *known == key) {
                    Some((_, images)) => images.push(name.clone()),
                    None => layers.push((key, vec![name.clone()])),
                }
            }
        }
        found.extend(layers.into_iter().map(|(key, images)| {
            let verdict = self.verify_layer(&key);
            Verified { what: format!("layer {key}"), images, verdict }
        }));
        found
    }

    fn verify_layer(&self, key: &LayerKey) -> Verdict {
        let marker = self.folders.layer(key).join("synced");
        let expected = match read_json::<Synced>(&marker) {
            Ok(Synced { tree: Some(tree), .. }) => tree,
            _ => return Verdict::Unknown,
        };
        match tree_digest(&self.folders.layer_fs(key)) {
            Ok(tree) if tree == expected => Verdict::Sound,
            Ok(tree) => Verdict::Broken(format!("its files have the digest {tree} instead of {expected}")),
            Err(error) => Verdict::Broken(error.to_string()),
        }
    }
}
