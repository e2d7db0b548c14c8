//! One repository on its registry and mirrors: manifests and small blobs, with authentication, retries, and
//! failover to the next server.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri};
use hyper::body::Incoming;
use serde::Deserialize;

use super::Timeouts;
use super::auth::{AuthContext, Tokens};
use super::challenge::challenges;
use super::endpoint::Endpoint;
use super::proxy::Proxies;
use super::sources::Sources;
use super::transport::{HttpTransport, OutgoingRequest};
use crate::credentials::Credentials;
use crate::descriptor::Descriptor;
use crate::digest::{Algorithm, Digest};
use crate::error::Error;
use crate::manifest::MAX_MANIFEST;
use crate::media_types::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use crate::printable::Printable;
use crate::reference::Reference;

/// The most retries of a request.
pub(super) const RETRIES: u32 = 3;
/// The longest time that a server may request in Retry-After.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(20);
/// The most bytes of an error answer that are read.
const MAX_ERROR: u64 = 16 << 10;
/// The most characters of its reasons that are shown.
const MAX_REASONS: usize = 300;

/// The registry client: configuration, connections and tokens, for all repositories.
#[derive(Debug)]
pub(crate) struct Registry {
    pub(crate) sources: Sources,
    pub(super) transport: HttpTransport,
    tokens: Tokens,
}

/// A manifest as it was received, with its digest verified.
#[derive(Clone, Debug)]
pub(crate) struct Fetched {
    pub(crate) bytes: Bytes,
    pub(crate) digest: Digest,
    pub(crate) media_type: Option<String>,
}

/// One repository, accessed with one set of credentials.
#[derive(Clone, Debug)]
pub(crate) struct Repository {
    pub(super) registry: Arc<Registry>,
    /// Domain and path, for messages.
    pub(super) name: String,
    pub(super) endpoints: Vec<Endpoint>,
}

impl Registry {
    pub(crate) fn new(sources: Sources, timeouts: Timeouts, proxies: Proxies) -> Self {
        Self { sources, transport: HttpTransport::new(timeouts, proxies), tokens: Tokens::default() }
    }

    /// Returns the repository of `reference`.
    pub(crate) async fn repository(
        self: &Arc<Self>,
        reference: &Reference,
        credentials: Option<Credentials>,
    ) -> Result<Repository, Error> {
        let endpoints = self.sources.endpoints(reference, credentials).await?;
        Ok(Repository { registry: self.clone(), name: reference.name(), endpoints })
    }
}

impl Repository {
    /// Fetches the manifest or index of a tag.
    pub(crate) async fn manifest_by_tag(&self, tag: &str) -> Result<Fetched, Error> {
        let what = format!("manifest {}:{tag}", self.name);
        let mut failure = None;
        for endpoint in self.endpoints.iter().filter(|endpoint| endpoint.resolve) {
            let fetched = if endpoint.pull {
                self.manifest(endpoint, &what, tag, None).await
            } else {
                match self.resolve(endpoint, &what, tag).await {
                    Ok(digest) => return self.manifest_by_digest(&digest).await,
                    Err(error) => Err(error),
                }
            };
            match fetched {
                Ok(fetched) => return Ok(fetched),
                Err(error) => self.note(endpoint, error, &mut failure),
            }
        }
        Err(failure.unwrap_or_else(|| {
            Error::not_found(what, "hosts.toml has no host with the capability to resolve tags")
        }))
    }

    /// Returns the servers, in the order in which they are tried.
    pub(crate) fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Returns the digest that one server has for a name, without the content and without retries.
    pub(crate) async fn probe(&self, endpoint: &Endpoint, reference: &Reference) -> Result<Digest, Error> {
        let what = format!("manifest {reference}");
        let endpoint = Endpoint { retried: false, ..endpoint.clone() };
        let name = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or_default().to_owned(),
        };
        self.resolve(&endpoint, &what, &name).await
    }

    /// Fetches the manifest or index with this digest.
    pub(crate) async fn manifest_by_digest(&self, digest: &Digest) -> Result<Fetched, Error> {
        let what = format!("manifest {}@{digest}", self.name);
        let mut failure = None;
        for endpoint in self.endpoints.iter().filter(|endpoint| endpoint.pull) {
            match self.manifest(endpoint, &what, &digest.to_string(), Some(digest)).await {
                Ok(fetched) => return Ok(fetched),
                Err(error) => self.note(endpoint, error, &mut failure),
            }
        }
        Err(failure
            .unwrap_or_else(|| Error::not_found(what, "hosts.toml has no host with the capability to pull")))
    }

    /// Fetches a small blob completely.
    pub(crate) async fn blob(&self, blob: &Descriptor, limit: u64) -> Result<Bytes, Error> {
        let what = format!("blob {}@{}", self.name, blob.digest);
        let mut failure = None;
        for endpoint in self.endpoints.iter().filter(|endpoint| endpoint.pull) {
            match self.blob_from(endpoint, &what, blob, limit).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => self.note(endpoint, error, &mut failure),
            }
        }
        Err(failure
            .unwrap_or_else(|| Error::not_found(what, "hosts.toml has no host with the capability to pull")))
    }

    /// Records the failure of a host. The last one is returned to the caller; it is that of the registry
    /// itself.
    pub(super) fn note(&self, endpoint: &Endpoint, error: Error, failure: &mut Option<Error>) {
        if endpoint.mirror {
            tracing::warn!(host = endpoint.authority, repository = self.name, %error, "mirror failed");
        }
        *failure = Some(error);
    }

    async fn manifest(
        &self,
        endpoint: &Endpoint,
        what: &str,
        name: &str,
        expected: Option<&Digest>,
    ) -> Result<Fetched, Error> {
        let response = self.send(endpoint, what, Method::GET, &format!("manifests/{name}"), accept()).await?;
        let media_type = header(response.headers(), CONTENT_TYPE.as_str());
        // The digest that the registry claims for a tag. For a digest, the requested one is used.
        let promised: Option<Digest> =
            header(response.headers(), "docker-content-digest").and_then(|text| text.parse().ok());
        let bytes = self.registry.transport.body(what, response, MAX_MANIFEST).await?;
        let algorithm = expected.or(promised.as_ref()).map_or(Algorithm::Sha256, Digest::algorithm);
        let digest = Digest::of(algorithm, &bytes);
        if let Some(expected) = expected.or(promised.as_ref())
            && *expected != digest
        {
            return Err(Error::corrupt(what, format!("digest is {digest} instead of {expected}")));
        }
        Ok(Fetched { bytes, digest, media_type })
    }

    /// Resolves a tag to its digest without fetching the content.
    async fn resolve(&self, endpoint: &Endpoint, what: &str, tag: &str) -> Result<Digest, Error> {
        let response = self.send(endpoint, what, Method::HEAD, &format!("manifests/{tag}"), accept()).await?;
        let digest = header(response.headers(), "docker-content-digest")
            .ok_or_else(|| Error::corrupt(what, "the answer has no Docker-Content-Digest header"))?;
        digest.parse().map_err(|error| Error::corrupt(what, error))
    }

    async fn blob_from(
        &self,
        endpoint: &Endpoint,
        what: &str,
        blob: &Descriptor,
        limit: u64,
    ) -> Result<Bytes, Error> {
        let response = self
            .send(endpoint, what, Method::GET, &format!("blobs/{}", blob.digest), HeaderMap::new())
            .await?;
        let bytes = self.registry.transport.body(what, response, limit).await?;
        check_blob(what, blob, &bytes)?;
        Ok(bytes)
    }

    /// Sends a request to one host, with retries, until it succeeds or fails with an error that a retry does
    /// not change.
    pub(super) async fn send(
        &self,
        endpoint: &Endpoint,
        what: &str,
        method: Method,
        rest: &str,
        headers: HeaderMap,
    ) -> Result<Response<Incoming>, Error> {
        let credentials = endpoint.credentials.as_ref().map(|sourced| &sourced.credentials);
        let context = AuthContext { endpoint, repository: &endpoint.repository, credentials };
        let uri = self.uri(endpoint, rest).map_err(|error| Error::invalid(what, error))?;
        let mut authorization = self.registry.tokens.cached(&context);
        let mut authenticated = false;
        let mut failures = 0;
        loop {
            let mut outgoing =
                OutgoingRequest { method: method.clone(), ..OutgoingRequest::get(uri.clone()) };
            outgoing.headers.extend(endpoint.headers.iter().cloned());
            outgoing.headers.extend(headers.clone());
            if let Some(header) = &authorization {
                outgoing.headers.insert(AUTHORIZATION, header.clone());
            }
            let (error, wait) = match self.registry.transport.send(&endpoint.tls, outgoing).await {
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(response) if response.status() == StatusCode::UNAUTHORIZED && !authenticated => {
                    // Only once: if the registry rejects a fresh header, a retry does not help.
                    authenticated = true;
                    self.registry.tokens.forget(&context);
                    let challenges = challenges(response.headers());
                    let tokens = &self.registry.tokens;
                    authorization = Some(
                        tokens
                            .answer(&self.registry.transport, &context, &challenges, what)
                            .await
                            .map_err(|error| error.about(what))?,
                    );
                    continue;
                }
                Ok(response) => {
                    let wait = retry_after(response.headers());
                    (self.refusal(endpoint, what, response).await, wait)
                }
                Err(error) => (error.about(what), None),
            };
            failures += 1;
            if !matches!(error, Error::Unavailable { .. }) || failures > RETRIES || !endpoint.retried {
                return Err(error);
            }
            tracing::debug!(%error, failures, "retrying request");
            tokio::time::sleep(wait.unwrap_or_else(|| self.backoff(failures))).await;
        }
    }

    /// Returns the time before a retry. It doubles each time, with jitter, so that many nodes do not retry
    /// simultaneously.
    pub(super) fn backoff(&self, failures: u32) -> Duration {
        let base = self.registry.transport.timeouts().backoff;
        let doubled = base.saturating_mul(2u32.saturating_pow(failures.saturating_sub(1)));
        doubled.mul_f64(rand::random_range(0.8..1.2)).min(MAX_RETRY_AFTER)
    }

    fn uri(&self, endpoint: &Endpoint, rest: &str) -> Result<Uri, http::uri::InvalidUri> {
        let Endpoint { scheme, authority, path, namespace, repository, .. } = endpoint;
        if endpoint.external {
            return format!("{scheme}://{authority}{path}").parse();
        }
        let query = namespace.as_ref().map(|namespace| format!("?ns={namespace}")).unwrap_or_default();
        format!("{scheme}://{authority}{path}/{repository}/{rest}{query}").parse()
    }

    /// Turns an unsuccessful answer into an error with the registry's reasons.
    async fn refusal(&self, endpoint: &Endpoint, what: &str, response: Response<Incoming>) -> Error {
        let status = response.status();
        let reasons = match self.registry.transport.body(what, response, MAX_ERROR).await {
            Ok(body) => reasons(&body),
            Err(_) => String::new(),
        };
        let why = format!("{} answered {status}{reasons}", endpoint.authority);
        match status {
            StatusCode::NOT_FOUND | StatusCode::GONE => Error::not_found(what, why),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::unauthorized(what, why),
            StatusCode::RANGE_NOT_SATISFIABLE => {
                Error::corrupt(what, format!("{why}: it is shorter than its descriptor"))
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Error::unavailable(what, why),
            _ if status.is_server_error() => Error::unavailable(what, why),
            _ => Error::unsupported(what, why),
        }
    }
}

/// Checks size and digest of a blob.
pub(crate) fn check_blob(what: &str, blob: &Descriptor, bytes: &[u8]) -> Result<(), Error> {
    if u64::try_from(bytes.len()) != Ok(blob.size) {
        return Err(Error::corrupt(what, format!("has {} bytes instead of {}", bytes.len(), blob.size)));
    }
    let digest = Digest::of(blob.digest.algorithm(), bytes);
    if digest != blob.digest {
        return Err(Error::corrupt(what, format!("has the digest {digest} instead of {}", blob.digest)));
    }
    Ok(())
}

fn accept() -> HeaderMap {
    let mut headers = HeaderMap::new();
    for media_type in [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST] {
        headers.append(ACCEPT, HeaderValue::from_static(media_type));
    }
    headers
}

pub(super) fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// Parses Retry-After in seconds. Registries do not send the form with a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = header(headers, RETRY_AFTER.as_str())?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}

/// Returns the errors in an answer, whose format is that of the distribution spec.
fn reasons(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Answer {
        errors: Vec<Reason>,
    }
    #[derive(Deserialize)]
    struct Reason {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(answer) = berth_json::from_slice::<Answer>(body) else {
        return String::new();
    };
    let reasons: Vec<_> =
        answer.errors.iter().take(3).map(|reason| format!("{} {}", reason.code, reason.message)).collect();
    let text: String = Printable::new(&reasons.join(", ")).as_str().chars().take(MAX_REASONS).collect();
    if text.is_empty() { text } else { format!(" ({text})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reasons_of_a_registry_are_printable_and_bounded() {
        let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest\u001b[31m unknown"}]}"#;
        assert_eq!(reasons(body), " (MANIFEST_UNKNOWN manifest\\u{1b}[31m unknown)");
        assert_eq!(reasons(b"<html>"), "");
        let long = format!(r#"{{"errors":[{{"message":"{}"}}]}}"#, "x".repeat(5000));
        assert!(reasons(long.as_bytes()).len() < 310);
    }
}
