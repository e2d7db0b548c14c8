//! The client of OCI registries: where to ask (`sources`, `hosts`, `registries_conf`), how to connect (`transport`, `proxy`), as whom (`auth`, `challenge`), and
//! what for (`repository`, `blob`, `pace`, `reader`).

mod auth;
mod blob;
mod challenge;
mod hosts;
mod no_proxy;
mod p521;
mod pace;
mod proxy;
mod reader;
mod registries_conf;
mod repository;
mod server_identity;
mod sources;
mod transport;

pub(crate) use blob::{Piece, Watcher};
pub(crate) use hosts::{Endpoint, mistakes as host_mistakes};
pub(crate) use pace::{Figures, MIN_RATE};
pub use proxy::Proxies;
pub(crate) use reader::PieceReader;
pub(crate) use registries_conf::mistakes as conf_mistakes;
pub(crate) use repository::{Registry, Repository, check_blob};
pub(crate) use sources::Sources;
pub(crate) use transport::traced;

/// What the fuzz targets call.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod parsers {
    use std::path::Path;

    use super::{challenge, hosts, registries_conf};
    use crate::reference::Reference;

    /// A `hosts.toml`: what it says of images of several registries.
    ///
    /// # Panics
    /// It leads to no server at all, or to one that cannot be asked.
    pub(crate) fn hosts(text: &str) {
        for name in ["r.example/team/app:1", "busybox", "localhost:5000/a"] {
            let Ok(reference) = name.parse::<Reference>() else { continue };
            let Ok(endpoints) = hosts::parse(text, Path::new("/nonexistent"), &reference) else { continue };
            assert!(!endpoints.is_empty(), "no server for {name}");
            for endpoint in endpoints {
                let hosts::Endpoint { scheme, authority, path, repository, .. } = &endpoint;
                let url = format!("{scheme}://{authority}{path}/{repository}/manifests/1");
                assert!(url.parse::<http::Uri>().is_ok(), "{url}");
                assert!(!authority.contains('@'), "{url}");
            }
        }
    }

    /// A `registries.conf`: which servers and which names it gives.
    pub(crate) fn registries_conf(text: &str) {
        let Ok(conf) = registries_conf::RegistriesConf::parse(text) else { return };
        let digest = format!("r.example/team/app@sha256:{}", "0".repeat(64));
        for name in ["r.example/team/app:1", "a.b.wild.example:5000/x", "busybox", digest.as_str()] {
            drop(conf.candidates(name));
            if let Ok(reference) = name.parse::<Reference>() {
                drop(conf.endpoints(&reference));
            }
        }
    }

    /// A `WWW-Authenticate` header.
    pub(crate) fn challenge(text: &str) {
        if let Ok(value) = http::HeaderValue::from_str(text) {
            let headers = http::HeaderMap::from_iter([(http::header::WWW_AUTHENTICATE, value)]);
            drop(challenge::challenges(&headers));
        }
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
