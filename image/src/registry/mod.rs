//! The client for OCI registries: which servers to use (`sources`, `hosts`, `registries_conf`, `endpoint`), connections
//! (`transport`, `tls`, `proxy`), authentication (`auth`, `challenge`), and content (`repository`, `blob`, `pace`,
//! `reader`).
//!
//! * [`no_proxy`]: the hosts that are contacted without a proxy
//! * [`p521`]: signatures with the curve P-521, which Go supports and *ring* does not
//! * [`server_identity`]: verification of server certificates by the rules of Go

mod auth;
mod blob;
mod challenge;
mod endpoint;
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
mod tls;
mod transport;

pub(crate) use blob::{Piece, Watcher};
pub(crate) use endpoint::Endpoint;
pub(crate) use hosts::mistakes as host_mistakes;
pub(crate) use pace::{Figures, MIN_RATE};
pub use proxy::Proxies;
pub(crate) use reader::PieceReader;
pub(crate) use registries_conf::mistakes as conf_mistakes;
pub(crate) use repository::{Registry, Repository, check_blob};
pub(crate) use sources::Sources;
pub(crate) use transport::traced;

/// Entry points for the fuzz targets.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod parsers {
    use std::path::Path;

    use super::{Endpoint, challenge, hosts, registries_conf};
    use crate::reference::Reference;

    /// Parses a `hosts.toml` for images of several registries.
    ///
    /// # Panics
    /// The result has no server, or one with an invalid URL.
    pub(crate) fn hosts(text: &str) {
        for name in ["r.example/team/app:1", "busybox", "localhost:5000/a"] {
            let Ok(reference) = name.parse::<Reference>() else { continue };
            let Ok(endpoints) = hosts::parse(text, Path::new("/nonexistent"), &reference) else { continue };
            assert!(!endpoints.is_empty(), "no server for {name}");
            for endpoint in endpoints {
                let Endpoint { scheme, authority, path, repository, .. } = &endpoint;
                let url = format!("{scheme}://{authority}{path}/{repository}/manifests/1");
                assert!(url.parse::<http::Uri>().is_ok(), "{url}");
                assert!(!authority.contains('@'), "{url}");
            }
        }
    }

    /// Parses a `registries.conf` and looks up several names.
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

    /// Parses a `WWW-Authenticate` header.
    pub(crate) fn challenge(text: &str) {
        if let Ok(value) = http::HeaderValue::from_str(text) {
            let headers = http::HeaderMap::from_iter([(http::header::WWW_AUTHENTICATE, value)]);
            drop(challenge::challenges(&headers));
        }
    }
}

use std::time::Duration;

/// Time limits for the steps of a transfer.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For a connection, including TLS.
    pub connect: Duration,
    /// Until the headers of an answer.
    pub answer: Duration,
    /// Between two pieces of a body. When it expires, the transfer is resumed.
    pub stall: Duration,
    /// The time after which a slow transfer releases its slot to others.
    pub slow: Duration,
    /// For a complete small document: a manifest, a config, a token.
    pub document: Duration,
    /// Before the first retry. It is doubled for each further one.
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
