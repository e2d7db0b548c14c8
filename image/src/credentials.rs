//! Credentials for a registry, from a request or a configuration file.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

use crate::digest::{Algorithm, Digest};
use crate::error::Error;

/// Credentials for a registry. `Debug` never shows a secret.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A user and a password, or a token in place of the password.
    Basic {
        /// The user name at the registry.
        username: String,
        /// The password or access token.
        password: String,
    },
    /// A refresh token, which is exchanged at the token service (OAuth2).
    IdentityToken(String),
    /// A bearer token, which is sent to the registry as it is.
    RegistryToken(String),
    /// Credentials of another variant that are restricted to one server.
    For {
        /// Host and port.
        server: String,
        /// The credentials for this server.
        credentials: Box<Credentials>,
    },
}

/// Credentials with their source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SourcedCredentials {
    pub(crate) credentials: Credentials,
    /// The file and its key, the helper, or the request.
    pub(crate) source: String,
}

impl Credentials {
    /// Creates credentials from the fields of a docker config's entry, which are those of the CRI's
    /// `AuthConfig`. The first non-empty of user name, identity token, `auth` (base64 of `user:password`) and
    /// registry token is used, in containerd's order.
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

    /// Restricts the credentials to one server (CRI `AuthConfig.server_address`): a host, or a URL as in
    /// docker's config.
    ///
    /// # Errors
    /// The address is neither a host nor a URL, or it contains a user.
    pub fn only_for(self, server: &str) -> Result<Self, Error> {
        let invalid = |why: &str| Error::invalid(format!("server address {server:?}"), why);
        let url = if server.contains("://") { server.to_owned() } else { format!("https://{server}") };
        let url: http::Uri = url.parse().map_err(|_| invalid("neither a host nor a URL"))?;
        let authority = url.authority().filter(|authority| !authority.as_str().contains('@'));
        let authority = authority.ok_or_else(|| invalid("no host, or a user in it"))?;
        let plain = url.scheme() == Some(&http::uri::Scheme::HTTP);
        let server = named(authority.as_str(), if plain { 80 } else { 443 });
        Ok(Self::For { server, credentials: Box::new(self) })
    }

    /// Returns the credentials that a server may receive. `authority` is its host and port.
    pub(crate) fn shown_to(&self, authority: &str, scheme: &http::uri::Scheme) -> Option<&Self> {
        let default = if *scheme == http::uri::Scheme::HTTP { 80 } else { 443 };
        match self {
            Self::For { server, credentials } => {
                (named(authority, default) == *server).then_some(credentials.as_ref())
            }
            any => Some(any),
        }
    }

    /// Returns a digest that identifies the credentials, as a key of caches that do not keep the secret.
    pub(crate) fn fingerprint(&self) -> Digest {
        let text = match self {
            Self::Basic { username, password } => format!("basic\0{username}\0{password}"),
            Self::IdentityToken(token) => format!("identity\0{token}"),
            Self::RegistryToken(token) => format!("registry\0{token}"),
            Self::For { server, credentials } => format!("for\0{server}\0{}", credentials.fingerprint()),
        };
        Digest::of(Algorithm::Sha256, text.as_bytes())
    }

    /// Returns the value of an `Authorization` header for the Basic scheme (RFC 7617).
    pub(crate) fn basic(&self) -> Option<String> {
        match self {
            Self::Basic { username, password } => {
                Some(format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
            }
            _ => None,
        }
    }
}

/// Returns the host and port of a server. All names of Docker Hub have one result.
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
    // Some tools pad the decoded text with NULs.
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
    fn the_first_non_empty_field_is_used() {
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
    fn credentials_for_one_server_are_not_sent_to_others() {
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
