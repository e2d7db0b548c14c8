//! The image of a new container, or the checkpoint in its place, and the layers above it.

use std::sync::Arc;

use berth_image::{Digest, Image, WritableLayer};
use berth_proto::v1::ImageSpec;

use super::ContainerBuilder;
use crate::container::assemble;
use crate::container::restore::{self, Restore, RestoreSource};
use crate::error::CriError;
use crate::operation::CreateStep;
impl ContainerBuilder {
    /// Where the files of the container come from.
    pub(super) fn source(&self) -> Result<RestoreSource, CriError> {
        match self.archive.clone().or_else(|| restore::archive(&self.config)) {
            Some(path) => Ok(RestoreSource::Archive(path)),
            None => self.image().map(RestoreSource::Image),
        }
    }

    /// Returns the image of the container. If the image of the request is a checkpoint, it is copied first, and the image is
    /// that of the checkpointed container.
    pub(super) async fn receive_checkpoint(
        &mut self,
        source: RestoreSource,
    ) -> Result<(Arc<Image>, Option<Restore>), CriError> {
        if let RestoreSource::Image(image) = &source {
            if !image.checkpoint {
                return Ok((image.clone(), None));
            }
            self.check_policy(image, None).await?;
        }
        self.progress.step(CreateStep::Checkpoint);
        let folder = self.daemon.pods.folders.container(&self.id);
        self.undo_folder(&folder);
        let criu = self.daemon.config.criu_path.clone();
        let images = &self.daemon.images;
        let restore = restore::receive(images, criu, &self.pod, &self.config, source, &folder).await?;
        if self.archive.is_some() && self.image()?.id != restore.image.id {
            let why = format!("its image is not that of the checkpoint, {}", restore.image_name);
            return Err(CriError::precondition(format!("container {}", self.id), why));
        }
        Ok((restore.image.clone(), Some(restore)))
    }

    /// Resolves the image of the request. Since 1.27 the kubelet sends the id that PullImage returned.
    pub(super) fn image(&self) -> Result<Arc<Image>, CriError> {
        let spec = self.config.image.clone().unwrap_or_default();
        let name = if spec.image_ref.is_empty() { &spec.image } else { &spec.image_ref };
        self.daemon
            .images
            .resolve(name)
            .or_else(|| self.daemon.images.resolve(&spec.image))
            .ok_or_else(|| CriError::not_found("image", &spec.image))
    }

    /// Checks the signature policy for the name in the pod, or else for the name in the request.
    pub(super) async fn check_policy(
        &mut self,
        image: &Image,
        restore: Option<&Restore>,
    ) -> Result<(), CriError> {
        let spec = self.config.image.clone().unwrap_or_default();
        let checkpointed = restore.filter(|_| self.archive.is_none());
        let name = checkpointed.map_or_else(|| name_of(&spec), |restore| &restore.image_name);
        Ok(self.daemon.images.check_policy(image, name).await?)
    }

    /// Resolves the image volumes. Their ids are kept for the status: the kubelet reports their digests.
    pub(super) async fn image_volumes(&mut self) -> Result<Vec<Digest>, CriError> {
        let mut digests = Vec::new();
        for mount in &mut self.config.mounts {
            let Some(spec) = &mut mount.image else { continue };
            let image = self.daemon.images.resolve(&spec.image).ok_or_else(|| {
                let operation = format!("mount the image volume of mounts[{}]", mount.container_path);
                let why = format!("{}: image {:?} not found", assemble::IMAGE_VOLUME_FAILED, spec.image);
                CriError::failed(operation, why)
            })?;
            self.daemon.images.check_policy(&image, name_of(spec)).await?;
            // As PullImage returned it: the kubelet compares the two.
            spec.image_ref = image.id.to_string();
            digests.push(image.id.clone());
        }
        Ok(digests)
    }

    pub(super) async fn make_layer(
        &mut self,
        image: &Arc<Image>,
        volumes: &[Digest],
    ) -> Result<WritableLayer, CriError> {
        let (images, id) = (self.daemon.images.clone(), self.id.clone());
        self.undo.push("remove the writable layer", async move {
            images.remove_layer(id.as_str()).await.map_err(|error| error.to_string())
        });
        Ok(self.daemon.images.create_layer(self.id.as_str(), &image.id, volumes).await?)
    }
}

/// Returns the name that the policy checks: the name in the pod, else the name in the request.
fn name_of(spec: &ImageSpec) -> &str {
    match spec.user_specified_image.as_str() {
        "" => &spec.image,
        name_in_pod => name_in_pod,
    }
}
