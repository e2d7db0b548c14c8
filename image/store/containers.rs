//! Containers' writable layers: a folder each, with the image that it belongs to written down before anything uses it.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::folders::{make_private, write_json};
use super::index::{ContainerEntry, Index};
use super::reaper::Job;
use super::record::{ContainerRecord, DiskUsage};
use super::{ImageStore, Inner};
use crate::digest::Digest;
use crate::error::{Error, blocking};
use crate::image::WritableLayer;

impl ImageStore {
    /// Makes a container's writable layer on an image, which is in use until [`Self::remove_layer`]. A repeat answers
    /// the one that is there.
    ///
    /// # Errors
    /// The image is not in the store, the container has a layer on another image, or the folders cannot be made.
    pub async fn create_layer(&self, container_id: &str, image_id: &Digest) -> Result<WritableLayer, Error> {
        check_id(container_id)?;
        let (inner, id, image) = (self.inner.clone(), container_id.to_owned(), image_id.clone());
        blocking("make a writable layer", move || inner.make_layer(&id, &image)).await
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

/// How the container is named among an image's users.
pub(super) fn user(container_id: &str) -> String {
    format!("container {container_id}")
}

impl Inner {
    fn make_layer(self: &Arc<Self>, id: &str, image: &Digest) -> Result<WritableLayer, Error> {
        {
            let mut index = self.index();
            if let Some(known) = index.containers.get(id) {
                if known.image.as_ref() != Some(image) {
                    let why = "it has a writable layer on another image";
                    return Err(Error::invalid(format!("container {id}"), why));
                }
                let layer = self.writable(&index, id);
                return layer
                    .ok_or_else(|| Error::not_found(format!("image {image}"), "it is not in the store"));
            }
            // From here on neither the image nor the name is free.
            index.add_user(image, &user(id))?;
            let entry = ContainerEntry { image: Some(image.clone()), usage: DiskUsage::default() };
            index.containers.insert(id.to_owned(), entry);
        }
        let made = self.make_layer_folder(id, image);
        if made.is_err()
            && let Err(error) = self.drop_layer(id)
        {
            tracing::warn!(container = id, %error, "remove a writable layer that could not be made");
        }
        made
    }

    fn make_layer_folder(&self, id: &str, image: &Digest) -> Result<WritableLayer, Error> {
        let folder = self.folders.container(id);
        make_private(&folder)?;
        write_json(&folder.join("layer.json"), &ContainerRecord { image: image.clone() })?;
        let layer = self.writable(&self.index(), id);
        let layer = layer.ok_or_else(|| Error::not_found(format!("image {image}"), "it has vanished"))?;
        make_private(&layer.work)?;
        make_private(&layer.upper)?;
        // overlayfs takes the root's owner and mode from the upper folder.
        if let Some(top) = layer.lower.first() {
            like(top, &layer.upper)?;
        }
        Ok(layer)
    }

    fn drop_layer(self: &Arc<Self>, id: &str) -> Result<(), Error> {
        if let Some(gone) = self.folders.discard(&self.folders.container(id))? {
            self.reaper.send(Job::Delete(gone));
        }
        let collect = {
            let mut index = self.index();
            let image = index.containers.remove(id).and_then(|entry| entry.image);
            image.filter(|image| index.drop_user(image, &user(id)))
        };
        match collect {
            Some(image) => self.purge(&image),
            None => Ok(()),
        }
    }

    fn writable(&self, index: &Index, id: &str) -> Option<WritableLayer> {
        let container = index.containers.get(id)?;
        let entry = index.entry(container.image.as_ref()?)?;
        let folder = self.folders.container(id);
        let mut lower: Vec<PathBuf> =
            entry.record.layers.iter().rev().map(|key| self.folders.layer_fs(key)).collect();
        if lower.is_empty() {
            lower.push(self.folders.empty());
        }
        Some(WritableLayer {
            upper: folder.join("upper"),
            work: folder.join("work"),
            lower,
            image: entry.image.clone(),
        })
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
