//! Containers' writable layers: a folder each, with the image that it belongs to written down before anything uses it.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::folders::{make_private, write_json};
use super::index::{ContainerEntry, Index, user};
use super::record::ContainerRecord;
use super::{ImageStore, Inner};
use crate::digest::Digest;
use crate::error::{Error, blocking};
use crate::image::{FsUsage, Image, ImageVolume, WritableLayer};

impl ImageStore {
    /// Makes a container's writable layer on an image. That one, and those that are to be mounted as `volumes`, are in use
    /// until [`Self::remove_layer`]. A repeat answers the layer that is there.
    ///
    /// # Errors
    /// An image is not in the store, the container has a layer with other images, or the folders cannot be made.
    pub async fn create_layer(
        &self,
        container_id: &str,
        image_id: &Digest,
        volumes: &[Digest],
    ) -> Result<WritableLayer, Error> {
        check_id(container_id)?;
        let (inner, id) = (self.inner.clone(), container_id.to_owned());
        let record = ContainerRecord { image: image_id.clone(), volumes: volumes.to_vec() };
        blocking("make a writable layer", move || inner.make_layer(&id, record)).await
    }

    /// Removes a container's writable layer with all that was written. One that is not there is fine.
    ///
    /// # Errors
    /// The folder cannot be moved away.
    pub async fn remove_layer(&self, container_id: &str) -> Result<(), Error> {
        check_id(container_id)?;
        let (inner, id) = (self.inner.clone(), container_id.to_owned());
        blocking("remove a writable layer", move || inner.drop_layer(&id)).await
    }

    /// A container's writable layer.
    #[must_use]
    pub fn layer(&self, container_id: &str) -> Option<WritableLayer> {
        self.inner.writable(&self.inner.index(), container_id)
    }

    /// What a container has written, as it was last measured ([`Self::measure_layers`]).
    #[must_use]
    pub fn layer_usage(&self, container_id: &str) -> Option<FsUsage> {
        self.inner.layer_usage(container_id)
    }

    /// The containers that have a writable layer, whole or in part.
    #[must_use]
    pub fn writable_layers(&self) -> Vec<String> {
        self.inner.index().containers.keys().cloned().collect()
    }
}

/// A container's id becomes a folder's name.
fn check_id(id: &str) -> Result<(), Error> {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if id.is_empty() || id.len() > 128 || id.starts_with('.') || !id.bytes().all(fine) {
        return Err(Error::invalid(format!("container id {id:?}"), "cannot name a folder"));
    }
    Ok(())
}

impl Inner {
    fn make_layer(self: &Arc<Self>, id: &str, record: ContainerRecord) -> Result<WritableLayer, Error> {
        let missing = || Error::not_found(format!("image {}", record.image), "it is not in the store");
        {
            let mut index = self.index();
            if let Some(known) = index.containers.get(id) {
                if known.record.as_ref() != Some(&record) {
                    let why = "it has a writable layer with other images";
                    return Err(Error::invalid(format!("container {id}"), why));
                }
                return self.writable(&index, id).ok_or_else(missing);
            }
            if index.entry(&record.image).is_some_and(|entry| entry.image.artifact) {
                let why = "is an artifact, which can be mounted, but not run";
                return Err(Error::unsupported(format!("image {}", record.image), why));
            }
            // From here on neither the images nor the name are free.
            for (used, image) in record.images().enumerate() {
                if let Err(error) = index.add_user(image, &user(id)) {
                    for image in record.images().take(used) {
                        index.drop_user(image, &user(id));
                    }
                    return Err(error);
                }
            }
            let entry = ContainerEntry { record: Some(record.clone()), usage: None, project: None };
            index.containers.insert(id.to_owned(), entry);
        }
        let made = self.make_layer_folder(id, &record);
        if made.is_err()
            && let Err(error) = self.drop_layer(id)
        {
            tracing::warn!(container = id, %error, "remove a writable layer that could not be made");
        }
        made
    }

    fn make_layer_folder(&self, id: &str, record: &ContainerRecord) -> Result<WritableLayer, Error> {
        let folder = self.folders.container(id);
        make_private(&folder)?;
        self.assign_project(id);
        write_json(&folder.join("layer.json"), record)?;
        let layer = self.writable(&self.index(), id);
        let vanished = || Error::not_found(format!("image {}", record.image), "it has vanished");
        let layer = layer.ok_or_else(vanished)?;
        make_private(&layer.work)?;
        make_private(&layer.upper)?;
        // overlayfs takes the root's owner and mode from the upper folder.
        if let Some(top) = layer.lower.first() {
            like(top, &layer.upper)?;
        }
        Ok(layer)
    }

    fn drop_layer(self: &Arc<Self>, id: &str) -> Result<(), Error> {
        let measured = self.index().containers.get(id).and_then(|entry| entry.usage);
        let usage = measured.map(|measured| measured.usage).unwrap_or_default();
        self.throw_away(&self.folders.container(id), usage)?;
        let unused: Vec<Digest> = {
            let mut index = self.index();
            let record = index.containers.remove(id).and_then(|entry| entry.record);
            let images = record.iter().flat_map(ContainerRecord::images);
            images.filter(|image| index.drop_user(image, &user(id))).cloned().collect()
        };
        unused.iter().try_for_each(|image| self.purge(image))
    }

    fn writable(&self, index: &Index, id: &str) -> Option<WritableLayer> {
        let record = index.containers.get(id)?.record.as_ref()?;
        let folder = self.folders.container(id);
        let volumes = record.volumes.iter().map(|volume| self.volume(index, volume));
        let (image, lower) = self.lower(index, &record.image)?;
        Some(WritableLayer {
            upper: folder.join("upper"),
            work: folder.join("work"),
            lower,
            image,
            volumes: volumes.collect::<Option<_>>()?,
        })
    }

    /// An image that is mounted.
    fn volume(&self, index: &Index, id: &Digest) -> Option<ImageVolume> {
        let (image, mut lower) = self.lower(index, id)?;
        if lower.len() < 2 {
            lower.push(self.folders.below());
        }
        Some(ImageVolume { image, lower })
    }

    /// An image and its folders, the topmost first; never none.
    fn lower(&self, index: &Index, id: &Digest) -> Option<(Arc<Image>, Vec<PathBuf>)> {
        let entry = index.entry(id)?;
        let mut lower: Vec<PathBuf> =
            entry.record.layers.iter().rev().map(|key| self.folders.layer_fs(key)).collect();
        if lower.is_empty() {
            lower.push(self.folders.empty());
        }
        Some((entry.image.clone(), lower))
    }
}

/// Gives a folder the owner and mode of another one.
fn like(model: &Path, folder: &Path) -> Result<(), Error> {
    let stat = fs::metadata(model).map_err(|error| Error::io("read", model, error))?;
    chown(folder, Some(stat.uid()), Some(stat.gid()))
        .and_then(|()| fs::set_permissions(folder, stat.permissions()))
        .map_err(|error| Error::io("change the owner and mode of", folder, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_are_no_folders_name_are_refused() {
        for bad in ["", ".", "..", "../x", "a/b", "a\0", ".hidden", "ä", &"x".repeat(129)] {
            assert!(check_id(bad).is_err(), "{bad:?}");
        }
        assert!(check_id(&"0f".repeat(32)).is_ok() && check_id("web-1_a.b").is_ok());
    }
}
