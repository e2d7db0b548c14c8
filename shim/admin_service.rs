//! The RPCs beyond the CRI that berth's command line uses (`proto/berth/v1/admin.proto`).

use std::path::Path;

use berth_image::Credentials;
use berth_proto::admin::admin_server::Admin;
use berth_proto::admin::{
    ArchivePiece, ExplainImageRequest, ExplainImageResponse, FsckRequest, FsckResponse, LoadImageRequest,
    LoadImageResponse, LoadedImage, LogLevelRequest, LogLevelResponse, PullImageRequest, PullProgress,
    SaveImagesRequest, Verdict, VerifiedPart, VerifyImagesRequest, VerifyImagesResponse,
};
use tonic::{Request, Response};
use tracing::Instrument;

use crate::config::value::LogFilter;
use crate::daemon::Shared;
use crate::error::CriError;
use crate::fsck;
use crate::images;
use crate::logging::LogLevel;
use crate::responses::{Reply, ResponseStream};

/// The Admin service of one daemon.
#[derive(Clone, Debug)]
pub struct AdminService {
    daemon: Shared,
    log_level: LogLevel,
}

impl AdminService {
    /// Creates the service of `daemon`, which changes the level of its log by `log_level`.
    #[must_use]
    pub fn new(daemon: Shared, log_level: LogLevel) -> Self {
        Self { daemon, log_level }
    }
}

fn credentials(username: &str, password: &str) -> Result<Option<Credentials>, CriError> {
    Ok(Credentials::from_parts(username, password, "", "", "")?)
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn load_image(&self, request: Request<LoadImageRequest>) -> Reply<LoadImageResponse> {
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

    async fn verify_images(&self, request: Request<VerifyImagesRequest>) -> Reply<VerifyImagesResponse> {
        let VerifyImagesRequest { image, repair } = request.into_inner();
        let name = Some(image.as_str()).filter(|name| !name.is_empty());
        let images = &self.daemon.images;
        let found = if repair { images.repair(name).await } else { images.verify(name).await };
        let found = found.map_err(CriError::from)?;
        let parts = found.into_iter().map(|part| {
            let (verdict, why) = match part.verdict {
                berth_image::Verdict::Sound => (Verdict::Sound, String::new()),
                berth_image::Verdict::Unknown => (Verdict::Unknown, String::new()),
                berth_image::Verdict::Broken(why) => (Verdict::Broken, why),
                berth_image::Verdict::Repaired(why) => (Verdict::Repaired, why),
            };
            VerifiedPart { what: part.what, images: part.images, verdict: verdict.into(), why }
        });
        Ok(Response::new(VerifyImagesResponse { parts: parts.collect() }))
    }

    type PullImageStream = ResponseStream<PullProgress>;

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Reply<Self::PullImageStream> {
        let PullImageRequest { image, username, password } = request.into_inner();
        let credentials = credentials(&username, &password)?;
        let (store, pods) = (self.daemon.images.clone(), self.daemon.pods.clone());
        Ok(Response::new(images::progress::pull(store, pods, image, credentials)))
    }

    async fn explain_image(&self, request: Request<ExplainImageRequest>) -> Reply<ExplainImageResponse> {
        let ExplainImageRequest { image, username, password } = request.into_inner();
        let credentials = credentials(&username, &password)?;
        let explained = self.daemon.images.explain(&image, credentials).await.map_err(CriError::from)?;
        let explanations = explained.into_iter().map(images::explanation).collect();
        Ok(Response::new(ExplainImageResponse { explanations }))
    }

    async fn fsck(&self, request: Request<FsckRequest>) -> Reply<FsckResponse> {
        let (parts, repair) = (fsck::DaemonParts::of(&self.daemon), request.into_inner().repair);
        // A client that disconnects does not stop a repair halfway.
        let check = tokio::spawn(async move { fsck::run(&parts, repair).await }.in_current_span());
        let report = check.await.map_err(|panic| CriError::internal("check the host", panic))?;
        Ok(Response::new(report.map_err(CriError::from)?.into()))
    }

    async fn log_level(&self, request: Request<LogLevelRequest>) -> Reply<LogLevelResponse> {
        let LogLevelRequest { level, reset } = request.into_inner();
        let by = "berth log-level";
        let changed = match (level.as_str(), reset) {
            ("", false) => Ok(()),
            ("", true) => self.log_level.reset(by),
            (level, _) => level
                .parse::<LogFilter>()
                .map_err(|error| error.to_string())
                .and_then(|level| self.log_level.set(&String::from(level), by)),
        };
        changed.map_err(|why| CriError::invalid("level", why))?;
        let (level, configured) = (self.log_level.current(), self.log_level.configured().to_owned());
        Ok(Response::new(LogLevelResponse { level, configured }))
    }

    type SaveImagesStream = ResponseStream<ArchivePiece>;

    async fn save_images(&self, request: Request<SaveImagesRequest>) -> Reply<Self::SaveImagesStream> {
        Ok(Response::new(images::save::stream(self.daemon.images.clone(), request.into_inner().images)))
    }
}
