//! Credentials for a registry, as a request or a configuration gives them.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

use crate::digest::{Algorithm, Digest};
use crate::error::Error;

/// What proves who is asking. `Debug` never shows a secret.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A user and a password, or a token in its place.
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: String,
    },
    /// A refresh token that the token service exchanges (OAuth2).
    IdentityToken(String),
    /// A bearer token that the registry itself takes.
    RegistryToken(String),
    /// Any of these, for one server only.
    For {
        /// Host and port.
        server: String,
        /// What it is shown.
        credentials: Box<Credentials>,
    },
}

/// Credentials, and where they are from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) credentials: Credentials,
    /// The file with its key, the helper, or the request.
    pub(crate) source: String,
}

impl Credentials {
    /// From the fields of a docker config's entry, which are those of the CRI's `AuthConfig`: the first of user name,
    /// identity token, registry token and `auth` (base64 of `user:password`) that is not empty counts, in containerd's
    /// order.
    ///
    /// # Errors
    /// `auth` cannot be decoded.
    pub fn from_parts(
        username: &str,
        password: &str,
        auth: &str,
        identity_token: &str,
        registry_token: &str,
    ) -> Result<Option<Self>, Error> {
        if !username.is_empty() {
            return Ok(Some(Self::Basic { username: username.to_owned(), password: password.to_owned() }));
        }
        if !identity_token.is_empty() {
            return Ok(Some(Self::IdentityToken(identity_token.to_owned())));
        }
        if !auth.is_empty() {
            return decode(auth).map(Some);
        }
        if !registry_token.is_empty() {
            return Ok(Some(Self::RegistryToken(registry_token.to_owned())));
        }
        Ok(None)
    }

    /// The same for one server only (CRI `AuthConfig.server_address`; a host, or a URL as docker's config has it).
    ///
    /// # Errors
    /// It is neither.
    pub fn only_for(self, server: &str) -> Result<Self, Error> {
        let invalid = |why: &str| Error::invalid(format!("server address {server:?}"), why);
        let url = if server.contains("://") { server.to_owned() } else { format!("https://{server}") };
        let url: http::Uri = url.parse().map_err(|_| invalid("is neither a host nor a URL"))?;
        let authority = url.authority().filter(|authority| !authority.as_str().contains('@'));
        let authority = authority.ok_or_else(|| invalid("has no host, or a password in it"))?;
        let plain = url.scheme() == Some(&http::uri::Scheme::HTTP);
        let server = named(authority.as_str(), if plain { 80 } else { 443 });
        Ok(Self::For { server, credentials: Box::new(self) })
    }

    /// What a server is shown of these; `authority` is its host and port.
    pub(crate) fn shown_to(&self, authority: &str, scheme: &http::uri::Scheme) -> Option<&Self> {
        let default = if *scheme == http::uri::Scheme::HTTP { 80 } else { 443 };
        match self {
            Self::For { server, credentials } => {
                (named(authority, default) == *server).then_some(credentials.as_ref())
            }
            any => Some(any),
        }
    }

    /// Tells credentials apart without keeping them, as a key of caches.
    pub(crate) fn fingerprint(&self) -> Digest {
        let text = match self {
            Self::Basic { username, password } => format!("basic\0{username}\0{password}"),
            Self::IdentityToken(token) => format!("identity\0{token}"),
            Self::RegistryToken(token) => format!("registry\0{token}"),
            Self::For { server, credentials } => format!("for\0{server}\0{}", credentials.fingerprint()),
        };
        Digest::of(Algorithm::Sha256, text.as_bytes())
    }

    /// The value of an `Authorization` header for the Basic scheme (RFC 7617).
    pub(crate) fn basic(&self) -> Option<String> {
        match self {
            Self::Basic { username, password } => {
                Some(format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
            }
            _ => None,
        }
    }
}

/// A server by its host and port. Docker Hub has several names.
fn named(authority: &str, default: u16) -> String {
    let authority = authority.to_ascii_lowercase();
    let parsed: Option<http::uri::Authority> = authority.parse().ok();
    let (host, port) = match &parsed {
        Some(parsed) => (parsed.host(), parsed.port_u16().unwrap_or(default)),
        None => (authority.as_str(), default),
    };
    match host {
        "docker.io" | "index.docker.io" | "registry-1.docker.io" => "docker.io:443".to_owned(),
        host => format!("{host}:{port}"),
    }
}

fn decode(auth: &str) -> Result<Credentials, Error> {
    let invalid = |why| Error::invalid("registry credentials", why);
    let auth = auth.trim();
    let bytes = STANDARD
        .decode(auth)
        .or_else(|_| STANDARD_NO_PAD.decode(auth))
        .map_err(|_| invalid("auth is not base64"))?;
    let text = String::from_utf8(bytes).map_err(|_| invalid("auth is not UTF-8"))?;
    // Some tools pad the decoded text with NUL.
    let text = text.trim_end_matches('\0');
    let (username, password) = text.split_once(':').ok_or_else(|| invalid("auth is not user:password"))?;
    Ok(Credentials::Basic { username: username.to_owned(), password: password.to_owned() })
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic(***)",
            Self::IdentityToken(_) => "IdentityToken(***)",
            Self::RegistryToken(_) => "RegistryToken(***)",
            Self::For { credentials, .. } => return fmt::Debug::fmt(credentials, f),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_is_given_counts() {
        let basic = |user: &str, password: &str| {
            Some(Credentials::Basic { username: user.to_owned(), password: password.to_owned() })
        };
        let from = |fields: [&str; 5]| {
            Credentials::from_parts(fields[0], fields[1], fields[2], fields[3], fields[4]).unwrap()
        };
        assert_eq!(from([""; 5]), None);
        assert_eq!(from(["u", "p", "eDp5", "i", "r"]), basic("u", "p"));
        assert_eq!(from(["", "", "eDp5OnoK", "", ""]), basic("x", "y:z\n"));
        assert_eq!(from(["", "", "eDp5OnoAAA", "", ""]), basic("x", "y:z"));
        assert_eq!(from(["", "", "eDp5", "i", "r"]), Some(Credentials::IdentityToken("i".to_owned())));
        assert_eq!(from(["", "", "", "", "r"]), Some(Credentials::RegistryToken("r".to_owned())));
    }

    #[test]
    fn credentials_for_one_server_are_shown_to_no_other() {
        let secret = Credentials::RegistryToken("x".to_owned());
        let shown = |server: &str, authority: &str, scheme: &http::uri::Scheme| {
            secret.clone().only_for(server).unwrap().shown_to(authority, scheme).is_some()
        };
        let (plain, tls) = (http::uri::Scheme::HTTP, http::uri::Scheme::HTTPS);
        assert!(shown("quay.io", "quay.io", &tls) && shown("https://quay.io/v2/", "QUAY.io:443", &tls));
        assert!(shown("https://index.docker.io/v1/", "registry-1.docker.io", &tls));
        assert!(shown("docker.io", "registry-1.docker.io", &tls));
        assert!(shown("http://r.test", "r.test", &plain) && shown("r.test:5000", "r.test:5000", &plain));
        for (server, authority) in [
            ("quay.io", "evil.test"),
            ("quay.io", "quay.io:5000"),
            ("r.test:5000", "r.test"),
            ("http://r.test", "r.test"),
            ("https://index.docker.io/v1/", "quay.io"),
        ] {
            assert!(!shown(server, authority, &tls), "{server} {authority}");
        }
        assert!(secret.shown_to("any.test", &tls).is_some());
        for bad in ["https://u:p@r.test", "a b", "https://"] {
            assert!(secret.clone().only_for(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_secret_is_shown() {
        for auth in ["!!", "eHk=", "/////w=="] {
            let text = Credentials::from_parts("", "", auth, "", "").unwrap_err().to_string();
            assert!(!text.contains(auth), "{text}");
        }
        let shown =
            format!("{:?}", Credentials::Basic { username: "joe".into(), password: "hunter2".into() });
        assert!(!shown.contains("hunter2") && !shown.contains("joe"), "{shown}");
    }
}
