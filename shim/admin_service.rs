//! What berth's own command line asks of a running daemon beyond the CRI (`proto/berth/v1/admin.proto`).

use std::path::Path;

use berth_proto::admin::admin_server::Admin;
use berth_proto::admin::{LoadImageRequest, LoadImageResponse, LoadedImage};
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
}
