//! The writable layers of containers. Each is a folder with a record of its image, which is written before
//! the layer is used.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::folders::{create_private, write_json};
use super::index::{ContainerEntry, Index, user};
use super::record::ContainerRecord;
use super::{ImageStore, Inner};
use crate::digest::Digest;
use crate::error::{Error, blocking};
use crate::image::{FsUsage, Image, ImageVolume, WritableLayer};

impl ImageStore {
    /// Creates a container's writable layer on an image. The image, and those that are mounted as `volumes`,
    /// are in use until [`Self::remove_layer`]. A repeated call returns the existing layer.
    ///
    /// # Errors
    /// An image is not in the store, the container has a layer with other images, or the folders cannot be
    /// created.
    pub async fn create_layer(
        &self,
        container_id: &str,
        image_id: &Digest,
        volumes: &[Digest],
    ) -> Result<WritableLayer, Error> {
        check_id(container_id)?;
        let (inner, id) = (self.inner.clone(), container_id.to_owned());
        let record = ContainerRecord { image: image_id.clone(), volumes: volumes.to_vec() };
        blocking("create a writable layer", move || inner.create_layer(&id, record)).await
    }

    /// Removes a container's writable layer with its content. It may be missing.
    ///
    /// # Errors
    /// The folder cannot be moved away.
    pub async fn remove_layer(&self, container_id: &str) -> Result<(), Error> {
        check_id(container_id)?;
        let (inner, id) = (self.inner.clone(), container_id.to_owned());
        blocking("remove a writable layer", move || inner.drop_layer(&id)).await
    }

    /// Returns a container's writable layer.
    #[must_use]
    pub fn layer(&self, container_id: &str) -> Option<WritableLayer> {
        self.inner.writable(&self.inner.index(), container_id)
    }

    /// Returns the usage of a container's writable layer at the last measurement ([`Self::measure_layers`]).
    #[must_use]
    pub fn layer_usage(&self, container_id: &str) -> Option<FsUsage> {
        self.inner.layer_usage(container_id)
    }

    /// Returns the containers that have a writable layer, complete or not.
    #[must_use]
    pub fn writable_layers(&self) -> Vec<String> {
        self.inner.index().containers.keys().cloned().collect()
    }
}

/// Checks that a container's id is safe as the name of a folder.
fn check_id(id: &str) -> Result<(), Error> {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if id.is_empty() || id.len() > 128 || id.starts_with('.') || !id.bytes().all(fine) {
        return Err(Error::invalid(format!("container id {id:?}"), "not valid as the name of a folder"));
    }
    Ok(())
}

impl Inner {
    fn create_layer(self: &Arc<Self>, id: &str, record: ContainerRecord) -> Result<WritableLayer, Error> {
        let missing = || Error::not_found(format!("image {}", record.image), "not in the store");
        {
            let mut index = self.index();
            if let Some(entry) = index.containers.get(id) {
                if entry.record.as_ref() != Some(&record) {
                    let why = "it has a writable layer with other images";
                    return Err(Error::invalid(format!("container {id}"), why));
                }
                return self.writable(&index, id).ok_or_else(missing);
            }
            if index.entry(&record.image).is_some_and(|entry| entry.image.artifact) {
                let why = "an artifact can be mounted, but not run";
                return Err(Error::unsupported(format!("image {}", record.image), why));
            }
            // From here on the images and the container's id are in use.
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
        let created = self.create_layer_folder(id, &record);
        if created.is_err()
            && let Err(error) = self.drop_layer(id)
        {
            tracing::warn!(container = id, %error, "failed to remove an incomplete writable layer");
        }
        created
    }

    fn create_layer_folder(&self, id: &str, record: &ContainerRecord) -> Result<WritableLayer, Error> {
        let folder = self.folders.container(id);
        create_private(&folder)?;
        self.assign_project(id);
        write_json(&folder.join("layer.json"), record)?;
        let layer = self.writable(&self.index(), id);
        let missing = || Error::not_found(format!("image {}", record.image), "it has been removed");
        let layer = layer.ok_or_else(missing)?;
        create_private(&layer.work)?;
        create_private(&layer.upper)?;
        // overlayfs takes the root's owner and mode from the upper folder.
        if let Some(top) = layer.lower.first() {
            copy_owner_and_mode(top, &layer.upper)?;
        }
        Ok(layer)
    }

    fn drop_layer(self: &Arc<Self>, id: &str) -> Result<(), Error> {
        let measured = self.index().containers.get(id).and_then(|entry| entry.usage);
        let usage = measured.map(|measured| measured.usage).unwrap_or_default();
        self.move_to_trash(&self.folders.container(id), usage)?;
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

    /// Returns an image that is mounted as a volume.
    fn volume(&self, index: &Index, id: &Digest) -> Option<ImageVolume> {
        let (image, mut lower) = self.lower(index, id)?;
        if lower.len() < 2 {
            lower.push(self.folders.below());
        }
        Some(ImageVolume { image, lower })
    }

    /// Returns an image and its folders, the topmost first. There is at least one folder.
    pub(super) fn lower(&self, index: &Index, id: &Digest) -> Option<(Arc<Image>, Vec<PathBuf>)> {
        let entry = index.entry(id)?;
        let mut lower: Vec<PathBuf> =
            entry.record.layers.iter().rev().map(|key| self.folders.layer_fs(key)).collect();
        if lower.is_empty() {
            lower.push(self.folders.empty());
        }
        Some((entry.image.clone(), lower))
    }
}

/// Sets the owner and mode of a folder to those of another one.
fn copy_owner_and_mode(model: &Path, folder: &Path) -> Result<(), Error> {
    let stat = fs::metadata(model).map_err(|error| Error::io("read", model, error))?;
    chown(folder, Some(stat.uid()), Some(stat.gid()))
        .and_then(|()| fs::set_permissions(folder, stat.permissions()))
        .map_err(|error| Error::io("change the owner and mode of", folder, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_are_not_valid_folder_names_are_rejected() {
        for bad in ["", ".", "..", "../x", "a/b", "a\0", ".hidden", "ä", &"x".repeat(129)] {
            assert!(check_id(bad).is_err(), "{bad:?}");
        }
        assert!(check_id(&"0f".repeat(32)).is_ok() && check_id("web-1_a.b").is_ok());
    }
}
