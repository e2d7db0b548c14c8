//! Authentication to a registry: the `Authorization` header for each repository, and the tokens for it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::uri::Scheme;
use http::{HeaderValue, Method, StatusCode, Uri};
use serde::Deserialize;

use super::challenge::{Challenge, Challenges};
use super::endpoint::{Endpoint, is_loopback};
use super::transport::{HttpTransport, OutgoingRequest, join, without_query};
use crate::credentials::Credentials;
use crate::digest::Digest;
use crate::error::Error;

const MAX_TOKEN_ANSWER: u64 = 1 << 20;
/// The lifetime of a token without one, in seconds (token specification).
const DEFAULT_LIFE: u64 = 60;
/// A token is not used for this time before it expires.
const MARGIN: Duration = Duration::from_secs(5);
/// The longest token, in bytes. It is sent in a header; servers accept 8 to 64 KiB of headers.
const MAX_TOKEN: usize = 64 << 10;
/// The most tokens that are cached.
const MAX_TOKENS: usize = 1000;
/// The most bytes of all cached tokens.
const MAX_KEPT: usize = 4 << 20;

/// The owner and the scope of a token.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct TokenKey {
    registry: String,
    repository: String,
    owner: Option<Digest>,
}

struct CachedHeader {
    header: HeaderValue,
    until: Instant,
}

/// The headers that registries have accepted, by repository and credentials.
#[derive(Default)]
pub(crate) struct Tokens {
    cache: Mutex<HashMap<TokenKey, CachedHeader>>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens")
    }
}

/// The answer of a token service. Older services call the token `token`.
#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// The repository of a request, and its credentials.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AuthContext<'a> {
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) repository: &'a str,
    pub(crate) credentials: Option<&'a Credentials>,
}

impl AuthContext<'_> {
    fn key(&self) -> TokenKey {
        TokenKey {
            registry: format!("{}://{}", self.endpoint.scheme, self.endpoint.authority),
            repository: self.repository.to_owned(),
            owner: self.credentials.map(Credentials::fingerprint),
        }
    }
}

impl Tokens {
    /// Returns the header that was accepted last, if it has not expired.
    pub(crate) fn cached(&self, context: &AuthContext<'_>) -> Option<HeaderValue> {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache
            .get(&context.key())
            .filter(|cached| cached.until > Instant::now())
            .map(|cached| cached.header.clone())
    }

    /// Gets a header that answers one of the challenges.
    pub(crate) async fn answer(
        &self,
        transport: &HttpTransport,
        context: &AuthContext<'_>,
        challenges: &Challenges,
        what: &str,
    ) -> Result<HeaderValue, Error> {
        let mut reason = match challenges.sent {
            true => "the registry supports neither Basic nor Bearer authentication",
            false => {
                "the answer is 401 without a challenge (WWW-Authenticate), so the way to log in is unknown: \
                 check that the address is that of a registry, and the proxies in front of it"
            }
        };
        for challenge in &challenges.supported {
            let answer = match challenge {
                Challenge::Bearer { realm, service, scope } => {
                    let scope =
                        scope.clone().unwrap_or_else(|| format!("repository:{}:pull", context.repository));
                    let request = TokenRequest { realm, service: service.as_deref(), scope: &scope };
                    Some(bearer(transport, context, &request, what).await?)
                }
                Challenge::Basic => match context.credentials.and_then(Credentials::basic) {
                    Some(basic) => Some((secret(what, &basic)?, Duration::from_secs(3600))),
                    None => {
                        reason = "the registry requires a user and a password";
                        None
                    }
                },
            };
            if let Some((header, life)) = answer {
                self.keep(context.key(), header.clone(), life);
                return Ok(header);
            }
        }
        Err(Error::unauthorized(what, reason))
    }

    /// Removes a header that a registry has rejected.
    pub(crate) fn forget(&self, context: &AuthContext<'_>) {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).remove(&context.key());
    }

    fn keep(&self, key: TokenKey, header: HeaderValue, life: Duration) {
        let now = Instant::now();
        let Some(until) = now.checked_add(life.saturating_sub(MARGIN)) else {
            return;
        };
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.retain(|_, cached| cached.until > now);
        let kept: usize = cache.values().map(|cached| cached.header.len()).sum();
        if cache.len() < MAX_TOKENS && kept + header.len() <= MAX_KEPT {
            cache.insert(key, CachedHeader { header, until });
        }
    }
}

struct TokenRequest<'a> {
    realm: &'a str,
    service: Option<&'a str>,
    scope: &'a str,
}

async fn bearer(
    transport: &HttpTransport,
    context: &AuthContext<'_>,
    request: &TokenRequest<'_>,
    what: &str,
) -> Result<(HeaderValue, Duration), Error> {
    if let Some(Credentials::RegistryToken(token)) = context.credentials {
        return Ok((secret(what, &format!("Bearer {token}"))?, Duration::from_secs(DEFAULT_LIFE)));
    }
    let endpoint = context.endpoint;
    let base: Uri = format!("{}://{}/", endpoint.scheme, endpoint.authority)
        .parse()
        .map_err(|error| Error::invalid(what, error))?;
    let realm = join(&base, request.realm).ok_or_else(|| {
        Error::unavailable(what, format!("the token service {:?} is not a URL", request.realm))
    })?;
    let authority = realm.authority().map(http::uri::Authority::as_str).unwrap_or_default();
    let plain = realm.scheme() != Some(&Scheme::HTTPS) && !is_loopback(authority);
    if plain && endpoint.scheme == Scheme::HTTPS && context.credentials.is_some() {
        let why = format!("credentials are not sent to {} over plain http", without_query(&realm));
        return Err(Error::unauthorized(what, why));
    }
    let outgoing = token_request(realm, context.credentials, request, what)?;
    let service = without_query(&outgoing.uri);
    let response = transport.send(&endpoint.tls, outgoing).await?;
    let status = response.status();
    let body = transport.body(service.as_str(), response, MAX_TOKEN_ANSWER).await?;
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        return Err(Error::unavailable(what, format!("token service {service}: {status}")));
    }
    if !status.is_success() {
        return Err(Error::unauthorized(what, format!("token service {service}: {status}")));
    }
    let answer: TokenAnswer = berth_json::from_slice(&body)
        .map_err(|error| Error::corrupt(format!("answer of the token service {service}"), error))?;
    let token = [answer.token, answer.access_token].into_iter().flatten().find(|token| !token.is_empty());
    let token =
        token.ok_or_else(|| Error::corrupt(format!("answer of the token service {service}"), "no token"))?;
    if token.len() > MAX_TOKEN {
        let why = format!("a token of {} bytes, the limit is {MAX_TOKEN}", token.len());
        return Err(Error::limit(format!("answer of the token service {service}"), why));
    }
    let life = Duration::from_secs(answer.expires_in.unwrap_or(DEFAULT_LIFE).clamp(DEFAULT_LIFE, 86_400));
    Ok((secret(what, &format!("Bearer {token}"))?, life))
}

/// Creates the GET request of the token specification. For an identity token, creates the POST request of
/// OAuth2 (RFC 6749, 6).
fn token_request(
    realm: Uri,
    credentials: Option<&Credentials>,
    request: &TokenRequest<'_>,
    what: &str,
) -> Result<OutgoingRequest, Error> {
    let mut query = Form::default();
    if let Some(service) = request.service {
        query.add("service", service);
    }
    for scope in request.scope.split(' ').filter(|scope| !scope.is_empty()) {
        query.add("scope", scope);
    }
    let mut outgoing = OutgoingRequest::get(realm);
    outgoing.headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    if let Some(Credentials::IdentityToken(token)) = credentials {
        query.add("grant_type", "refresh_token");
        query.add("client_id", "berth");
        query.add("refresh_token", token);
        outgoing.method = Method::POST;
        outgoing.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        outgoing.body = query.text.into();
        return Ok(outgoing);
    }
    let separator = if outgoing.uri.query().is_some() { '&' } else { '?' };
    let uri = format!("{}{separator}{}", outgoing.uri, query.text);
    outgoing.uri =
        uri.parse().map_err(|error| Error::unavailable(what, format!("token service: {error}")))?;
    if let Some(basic) = credentials.and_then(Credentials::basic) {
        outgoing.headers.insert(AUTHORIZATION, secret(what, &basic)?);
    }
    Ok(outgoing)
}

/// A form in URL encoding.
#[derive(Default)]
struct Form {
    text: String,
}

impl Form {
    fn add(&mut self, name: &str, value: &str) {
        if !self.text.is_empty() {
            self.text.push('&');
        }
        self.text.push_str(name);
        self.text.push('=');
        for byte in value.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    self.text.push(char::from(byte));
                }
                _ => self.text.push_str(&format!("%{byte:02X}")),
            }
        }
    }
}

/// Creates a header value that is hidden in logs.
fn secret(what: &str, text: &str) -> Result<HeaderValue, Error> {
    let mut value = HeaderValue::from_str(text).map_err(|_| {
        Error::unauthorized(what, "the credentials have characters that a header cannot have")
    })?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request<'a>() -> TokenRequest<'a> {
        TokenRequest { realm: "", service: Some("a b"), scope: "repository:x/y:pull repository:z:pull" }
    }

    #[test]
    fn token_requests_follow_the_specifications() {
        let realm: Uri = "https://auth.example/token?x=y".parse().unwrap();
        let basic = Credentials::Basic { username: "u".into(), password: "p".into() };
        let outgoing = token_request(realm.clone(), Some(&basic), &request(), "test").unwrap();
        assert_eq!(
            outgoing.uri,
            "https://auth.example/token?x=y&service=a%20b&scope=repository%3Ax%2Fy%3Apull&scope=repository%3Az%3Apull"
        );
        assert_eq!(outgoing.headers.get(AUTHORIZATION).unwrap(), "Basic dTpw");
        assert!(!format!("{outgoing:?}").contains("dTpw"));
        let identity = Credentials::IdentityToken("t+t".into());
        let outgoing = token_request(realm, Some(&identity), &request(), "test").unwrap();
        assert_eq!((outgoing.method, outgoing.headers.get(AUTHORIZATION)), (Method::POST, None));
        let body = String::from_utf8(outgoing.body.to_vec()).unwrap();
        assert!(body.ends_with("grant_type=refresh_token&client_id=berth&refresh_token=t%2Bt"), "{body}");
    }

    #[test]
    fn a_header_is_cached_for_its_repository_and_owner() {
        let tokens = Tokens::default();
        let endpoint = super::super::endpoint::origin("r.example", "a");
        let user = Credentials::RegistryToken("x".into());
        let context = AuthContext { endpoint: &endpoint, repository: "a", credentials: Some(&user) };
        tokens.keep(context.key(), HeaderValue::from_static("Bearer x"), Duration::from_secs(60));
        assert!(tokens.cached(&context).is_some());
        assert!(tokens.cached(&AuthContext { repository: "b", ..context }).is_none());
        assert!(tokens.cached(&AuthContext { credentials: None, ..context }).is_none());
        tokens.forget(&context);
        assert!(tokens.cached(&context).is_none());
        tokens.keep(context.key(), HeaderValue::from_static("Bearer x"), MARGIN);
        assert!(tokens.cached(&context).is_none());
    }

    #[test]
    fn tokens_of_many_repositories_take_bounded_memory() {
        let tokens = Tokens::default();
        let endpoint = super::super::endpoint::origin("r.example", "a");
        let long = HeaderValue::from_str(&"x".repeat(MAX_TOKEN)).unwrap();
        for number in 0..2000 {
            let repository = number.to_string();
            let context = AuthContext { endpoint: &endpoint, repository: &repository, credentials: None };
            tokens.keep(context.key(), long.clone(), Duration::from_secs(60));
        }
        let cache = tokens.cache.lock().unwrap();
        assert_eq!(cache.values().map(|cached| cached.header.len()).sum::<usize>(), MAX_KEPT);
    }
}
