//! The address of a server that serves a repository, and how it is contacted.

use http::uri::{PathAndQuery, Scheme, Uri};
use http::{HeaderName, HeaderValue};

use super::tls::Tls;
use crate::credentials::SourcedCredentials;

/// One server of a registry.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Endpoint {
    pub(crate) scheme: Scheme,
    /// Host and port.
    pub(crate) authority: String,
    /// The path before `/<repository>/manifests/...`: `/v2`, unless overridden.
    pub(crate) path: String,
    /// It serves manifests by digest, and blobs.
    pub(crate) pull: bool,
    /// It resolves tags to digests.
    pub(crate) resolve: bool,
    pub(crate) tls: Tls,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// The registry's name, which is sent to a mirror (`?ns=docker.io`).
    pub(crate) namespace: Option<String>,
    /// The name of the repository on this server.
    pub(crate) repository: String,
    /// It is a mirror of the registry in the image's name.
    pub(crate) mirror: bool,
    /// It receives only credentials that are configured for it, not those for the registry.
    pub(crate) own_credentials: bool,
    /// It is a location outside the registry. The path is that of the content itself, not of an API.
    pub(crate) external: bool,
    /// Requests to it are retried if it does not answer.
    pub(crate) retried: bool,
    /// The credentials for it.
    pub(crate) credentials: Option<SourcedCredentials>,
}

impl Endpoint {
    /// Returns host and repository, as a key for credentials.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.authority, self.repository)
    }
}

/// Returns the registry's own server, without configuration.
pub(crate) fn origin(domain: &str, repository: &str) -> Endpoint {
    let authority = if domain == "docker.io" { "registry-1.docker.io" } else { domain };
    Endpoint {
        scheme: if is_loopback(authority) { Scheme::HTTP } else { Scheme::HTTPS },
        authority: authority.to_owned(),
        path: "/v2".to_owned(),
        pull: true,
        resolve: true,
        tls: Tls::default(),
        headers: Vec::new(),
        namespace: None,
        repository: repository.to_owned(),
        mirror: false,
        own_credentials: false,
        external: false,
        retried: true,
        credentials: None,
    }
}

/// Returns a location of a layer outside the registry, from the `urls` of its descriptor. No credentials are
/// sent there. Plain http is only accepted for this machine.
pub(crate) fn external(url: &str) -> Option<Endpoint> {
    let uri: Uri = url.parse().ok()?;
    let authority = uri.authority().map(|authority| authority.as_str()).filter(|text| !text.contains('@'))?;
    let scheme = match uri.scheme() {
        Some(scheme) if *scheme == Scheme::HTTPS => Scheme::HTTPS,
        Some(scheme) if *scheme == Scheme::HTTP && is_loopback(authority) => Scheme::HTTP,
        _ => return None,
    };
    let path = uri.path_and_query().map(PathAndQuery::to_string).unwrap_or_default();
    Some(Endpoint { scheme, path, external: true, own_credentials: true, ..origin(authority, "") })
}

/// Returns whether `authority` (host and port) is this machine. Plain HTTP is the default for it.
pub(crate) fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}
