//! The CRI's ImageService: each RPC calls the function that is named after it.

use berth_image::ImageStore;
use berth_proto::v1::image_service_server::ImageService;
use berth_proto::v1::*;
use tonic::{Request, Response};

use crate::daemon::Shared;
use crate::error::CriError;
use crate::images::{self, report};
use crate::responses::{Reply, ResponseStream, in_messages};

/// The ImageService of one daemon.
#[derive(Clone, Debug)]
pub struct Images {
    daemon: Shared,
}

impl Images {
    /// Creates the service of `daemon`.
    #[must_use]
    pub fn new(daemon: Shared) -> Self {
        Self { daemon }
    }

    /// Returns the image store and the names of the runtime handlers.
    fn parts(&self) -> (&ImageStore, &[String]) {
        (&self.daemon.images, &self.daemon.config.runtime_handlers)
    }
}

fn required(image: Option<ImageSpec>) -> Result<ImageSpec, CriError> {
    image.ok_or_else(|| CriError::invalid("image", "is missing"))
}

#[tonic::async_trait]
impl ImageService for Images {
    type StreamImagesStream = ResponseStream<StreamImagesResponse>;

    async fn list_images(&self, request: Request<ListImagesRequest>) -> Reply<ListImagesResponse> {
        let (store, handlers) = self.parts();
        let images = images::list(store, handlers, request.into_inner().filter.as_ref())?;
        Ok(Response::new(ListImagesResponse { images }))
    }

    async fn stream_images(&self, request: Request<StreamImagesRequest>) -> Reply<Self::StreamImagesStream> {
        let (store, handlers) = self.parts();
        let items = images::list(store, handlers, request.into_inner().filter.as_ref())?;
        Ok(Response::new(in_messages(items, |images| StreamImagesResponse { images })))
    }

    async fn image_status(&self, request: Request<ImageStatusRequest>) -> Reply<ImageStatusResponse> {
        let (store, handlers) = self.parts();
        let request = request.into_inner();
        let answer = images::status(store, handlers, &required(request.image)?, request.verbose).await?;
        Ok(Response::new(answer))
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Reply<PullImageResponse> {
        let (store, handlers) = self.parts();
        let request = request.into_inner();
        let image = required(request.image)?;
        let pulling =
            images::pull(store, &self.daemon.pods.instruments, handlers, &image, request.auth.as_ref());
        let image_ref = report::pull(&self.daemon.pods.events, &image.image, pulling).await?;
        Ok(Response::new(PullImageResponse { image_ref }))
    }

    async fn remove_image(&self, request: Request<RemoveImageRequest>) -> Reply<RemoveImageResponse> {
        let (store, handlers) = self.parts();
        images::remove(store, handlers, &required(request.into_inner().image)?).await?;
        Ok(Response::new(RemoveImageResponse {}))
    }

    async fn image_fs_info(&self, _: Request<ImageFsInfoRequest>) -> Reply<ImageFsInfoResponse> {
        Ok(Response::new(images::fs_info(&self.daemon.images).await))
    }
}
