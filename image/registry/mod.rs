//! The client of OCI registries: where to ask (`sources`, `hosts`, `registries_conf`), how to connect (`transport`, `proxy`), as whom (`auth`, `challenge`), and
//! what for (`repository`, `blob`, `pace`, `reader`).

mod auth;
mod blob;
mod challenge;
mod hosts;
mod pace;
mod proxy;
mod reader;
mod registries_conf;
mod repository;
mod sources;
mod transport;

pub(crate) use blob::{Piece, Watcher};
pub(crate) use hosts::Endpoint;
pub(crate) use pace::{Figures, MIN_RATE};
pub use proxy::Proxies;
pub(crate) use reader::PieceReader;
pub(crate) use repository::{Registry, Repository, check_blob};
pub(crate) use sources::Sources;
pub(crate) use transport::traced;

/// Parses the files about registries, for the fuzz targets.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn parse_files(text: &str) {
    use crate::reference::Reference;
    let Ok(reference) = "r.example/team/app:1".parse::<Reference>() else { return };
    drop(hosts::parse(text, std::path::Path::new("/nonexistent"), &reference));
    if let Ok(conf) = registries_conf::RegistriesConf::parse(text) {
        drop((conf.endpoints(&reference), conf.candidates("app:1")));
    }
    if let Ok(value) = http::HeaderValue::from_str(text) {
        let headers = http::HeaderMap::from_iter([(http::header::WWW_AUTHENTICATE, value)]);
        drop(challenge::challenges(&headers));
    }
}

use std::time::Duration;

/// How long the steps of a transfer may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Until a connection is there, TLS included.
    pub connect: Duration,
    /// Until the first byte of an answer.
    pub answer: Duration,
    /// Between two pieces of a body: then the transfer is stalled and is taken up again.
    pub stall: Duration,
    /// How long a transfer may be slow before its turn goes to others.
    pub slow: Duration,
    /// Until a small document is there as a whole: a manifest, a config, a token.
    pub document: Duration,
    /// Before the first retry; doubled for each further one.
    pub backoff: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            answer: Duration::from_secs(60),
            stall: Duration::from_secs(30),
            slow: Duration::from_secs(10),
            document: Duration::from_secs(600),
            backoff: Duration::from_millis(250),
        }
    }
}
