//! What berth's own command line asks of a running daemon beyond the CRI (`proto/berth/v1/admin.proto`).

use std::path::Path;

use berth_proto::admin::admin_server::Admin;
use berth_proto::admin::{
    LoadImageRequest, LoadImageResponse, LoadedImage, Verdict, VerifiedPart, VerifyImagesRequest,
    VerifyImagesResponse,
};
use tonic::{Request, Response, Status};

use crate::daemon::Shared;
use crate::error::CriError;

/// The Admin service of one daemon.
#[derive(Clone, Debug)]
pub struct AdminService {
    daemon: Shared,
}

impl AdminService {
    /// Answers for `daemon`.
    #[must_use]
    pub fn new(daemon: Shared) -> Self {
        Self { daemon }
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn load_image(
        &self,
        request: Request<LoadImageRequest>,
    ) -> Result<Response<LoadImageResponse>, Status> {
        let path = request.into_inner().path;
        if !Path::new(&path).is_absolute() {
            return Err(CriError::invalid("path", "is not absolute").into());
        }
        let loaded = self.daemon.images.load(Path::new(&path)).await.map_err(CriError::from)?;
        let images = loaded
            .iter()
            .map(|image| LoadedImage { id: image.id.to_string(), tags: image.repo_tags.clone() })
            .collect();
        Ok(Response::new(LoadImageResponse { images }))
    }

    async fn verify_images(
        &self,
        request: Request<VerifyImagesRequest>,
    ) -> Result<Response<VerifyImagesResponse>, Status> {
        let name = request.into_inner().image;
        let name = Some(name.as_str()).filter(|name| !name.is_empty());
        let found = self.daemon.images.verify(name).await.map_err(CriError::from)?;
        let parts = found.into_iter().map(|part| {
            let (verdict, why) = match part.verdict {
                berth_image::Verdict::Sound => (Verdict::Sound, String::new()),
                berth_image::Verdict::Unknown => (Verdict::Unknown, String::new()),
                berth_image::Verdict::Broken(why) => (Verdict::Broken, why),
            };
            VerifiedPart { what: part.what, images: part.images, verdict: verdict.into(), why }
        });
        Ok(Response::new(VerifyImagesResponse { parts: parts.collect() }))
    }
}
