//! Redirects. Credentials are not sent to another origin.

use http::header::{AUTHORIZATION, COOKIE, HOST, LOCATION};
use http::uri::{Scheme, Uri};
use http::{HeaderMap, Response, StatusCode};
use hyper::body::Incoming;

use super::without_query;
use crate::error::Error;
use crate::registry::endpoint::is_loopback;

pub(super) trait RetainCrossOrigin {
    fn retain_cross_origin(&mut self);
}

impl RetainCrossOrigin for HeaderMap {
    fn retain_cross_origin(&mut self) {
        let ours = [http::header::ACCEPT, http::header::RANGE];
        let kept: Vec<_> =
            ours.iter().filter_map(|name| Some((name.clone(), self.get(name)?.clone()))).collect();
        self.clear();
        self.extend(kept);
        debug_assert!(
            !self.contains_key(AUTHORIZATION) && !self.contains_key(COOKIE) && !self.contains_key(HOST)
        );
    }
}

/// Returns the target of a redirect, or None if the answer is not one.
pub(super) fn redirect(response: &Response<Incoming>, from: &Uri) -> Result<Option<Uri>, Error> {
    let redirects = [
        StatusCode::MOVED_PERMANENTLY,
        StatusCode::FOUND,
        StatusCode::SEE_OTHER,
        StatusCode::TEMPORARY_REDIRECT,
        StatusCode::PERMANENT_REDIRECT,
    ];
    if !redirects.contains(&response.status()) {
        return Ok(None);
    }
    let invalid = |why: &str| Error::unavailable(without_query(from), format!("invalid redirect: {why}"));
    let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let location = location.ok_or_else(|| invalid("no location"))?;
    let target = join(from, location).ok_or_else(|| invalid("the location is not a URL"))?;
    if target.scheme() != Some(&Scheme::HTTP) && target.scheme() != Some(&Scheme::HTTPS) {
        return Err(invalid("neither http nor https"));
    }
    let downgrade = from.scheme() == Some(&Scheme::HTTPS) && target.scheme() == Some(&Scheme::HTTP);
    if downgrade && !is_loopback(target.authority().map(http::uri::Authority::as_str).unwrap_or_default()) {
        return Err(invalid("from https to plain http"));
    }
    Ok(Some(target))
}

/// Resolves a location against the URL of the request (RFC 3986, 5.2, as far as servers use it).
pub(crate) fn join(base: &Uri, location: &str) -> Option<Uri> {
    if location.contains("://") {
        return location.parse().ok();
    }
    let scheme = base.scheme_str()?;
    if let Some(rest) = location.strip_prefix("//") {
        return format!("{scheme}://{rest}").parse().ok();
    }
    let authority = base.authority()?;
    if location.starts_with('/') {
        return format!("{scheme}://{authority}{location}").parse().ok();
    }
    let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
    format!("{scheme}://{authority}{folder}/{location}").parse().ok()
}

pub(super) fn origin(uri: &Uri) -> (Option<&str>, Option<String>, Option<u16>) {
    let default = if uri.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 };
    (uri.scheme_str(), uri.host().map(str::to_ascii_lowercase), uri.port_u16().or(Some(default)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_resolved() {
        let base: Uri = "https://r.example:444/v2/a/blobs/x?y=z".parse().unwrap();
        for (location, expected) in [
            ("https://cdn.example/b?sig=1", "https://cdn.example/b?sig=1"),
            ("//cdn.example/b", "https://cdn.example/b"),
            ("/b?c", "https://r.example:444/b?c"),
            ("b", "https://r.example:444/v2/a/blobs/b"),
        ] {
            assert_eq!(join(&base, location).unwrap(), expected);
        }
        assert_eq!(join(&base, "https://a b"), None);
    }

    #[test]
    fn a_default_port_does_not_change_the_origin() {
        let uri = |text: &str| text.parse::<Uri>().unwrap();
        assert_eq!(origin(&uri("https://R.example/a")), origin(&uri("https://r.example:443/b")));
        assert_ne!(origin(&uri("https://r.example/")), origin(&uri("https://r.example:5000/")));
        assert_ne!(origin(&uri("http://r.example:443/")), origin(&uri("https://r.example/")));
    }
}
