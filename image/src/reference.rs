//! Image references, normalised as Docker does: `busybox` is `docker.io/library/busybox:latest`.
//!
//! The grammar is that of the distribution project's reference package.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;
use crate::error::Error;

const DEFAULT_DOMAIN: &str = "docker.io";
const OFFICIAL: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// The longest domain and path together.
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// The name of an image in a registry, always complete: domain, path, and a tag or a digest or both. With
/// both, the digest selects the image and the tag is only kept for display.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Returns the registry's host, with its port if there is one. Docker Hub is `docker.io`.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Returns the repository within the registry.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns the tag. It is `latest` if neither tag nor digest was given.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns the digest of the manifest or index.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Returns domain and path, without tag and digest.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// Returns `name:tag`, or None if there is a digest: then the tag has not been verified.
    pub(crate) fn tagged(&self) -> Option<String> {
        match (&self.tag, &self.digest) {
            (Some(tag), None) => Some(format!("{}:{tag}", self.name())),
            _ => None,
        }
    }

    /// Returns the name that policies and signatures are compared with. A digest takes precedence over a tag.
    pub(crate) fn identity(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => self.with_digest(digest),
            (None, Some(tag)) => format!("{}:{tag}", self.name()),
            (None, None) => self.name(),
        }
    }

    /// Returns `name@digest`.
    pub(crate) fn with_digest(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.name())
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = |why| Error::InvalidReference { reference: text.into(), why };
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse().map_err(|_| invalid("invalid digest"))?)),
            None => (text, None),
        };
        if is_hex_id(name) || name.parse::<Digest>().is_ok() {
            return Err(invalid("an image id, not a name"));
        }
        // A colon after the last slash separates the tag. A colon before it separates a port.
        let last = name.rfind('/').map_or(0, |slash| slash + 1);
        let colon = name.get(last..).and_then(|rest| rest.find(':'));
        let (name, tag) = match colon.and_then(|colon| name.split_at_checked(last + colon)) {
            Some((name, tag)) => (name, tag.get(1..)),
            None => (name, None),
        };
        let (domain, path) = split_domain(name);
        if path.chars().any(char::is_uppercase) {
            return Err(invalid("upper-case letters in the repository"));
        }
        if !is_domain(&domain) {
            return Err(invalid("the registry is not a valid host"));
        }
        if !path.split('/').all(is_path_component) {
            return Err(invalid("invalid repository"));
        }
        if domain.len() + 1 + path.len() > MAX_NAME {
            return Err(invalid("the name is longer than 255 characters"));
        }
        if !tag.is_none_or(is_tag) {
            return Err(invalid("invalid tag"));
        }
        let tag = match (tag, &digest) {
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self { domain, path, tag, digest })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Returns whether `text` is the hex part of an image id.
pub(crate) fn is_hex_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Splits a name into registry and repository. If the first part does not look like a host, the registry is
/// Docker Hub.
fn split_domain(name: &str) -> (String, String) {
    let (domain, path) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.chars().any(|letter| letter.is_ascii_uppercase()) =>
        {
            (if first == "index.docker.io" { DEFAULT_DOMAIN } else { first }, rest)
        }
        _ => (DEFAULT_DOMAIN, name),
    };
    if domain == DEFAULT_DOMAIN && !path.contains('/') {
        return (domain.to_owned(), format!("{OFFICIAL}{path}"));
    }
    (domain.to_owned(), path.to_owned())
}

fn is_domain(domain: &str) -> bool {
    if let Some(rest) = domain.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else {
            return false;
        };
        return address.parse::<std::net::Ipv6Addr>().is_ok() && (port.is_empty() || is_port_suffix(port));
    }
    let (host, port) = match domain.find(':') {
        Some(colon) => domain.split_at(colon),
        None => (domain, ""),
    };
    (port.is_empty() || is_port_suffix(port)) && host.split('.').all(is_host_label)
}

fn is_port_suffix(text: &str) -> bool {
    text.strip_prefix(':').is_some_and(|port| {
        !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
    })
}

fn is_host_label(label: &str) -> bool {
    !label.is_empty()
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// Returns whether a component consists of letters and digits, separated by one dot, one or two underscores,
/// or any number of dashes.
fn is_path_component(component: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut separator = String::new();
    let ends = component.bytes().next().is_some_and(inner) && component.bytes().last().is_some_and(inner);
    ends && component.chars().all(|letter| {
        if u8::try_from(letter).is_ok_and(inner) {
            separator.clear();
            return true;
        }
        separator.push(letter);
        matches!(separator.as_str(), "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-')
    })
}

fn is_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn canonical(text: &str) -> String {
        text.parse::<Reference>().unwrap_or_else(|error| panic!("{error}")).to_string()
    }

    #[test]
    fn names_are_completed_as_in_docker() {
        let cases = [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/library/busybox", "docker.io/library/busybox:latest"),
            ("user/app", "docker.io/user/app:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app:v1", "localhost:5000/app:v1"),
            ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest"),
            ("[::1]:5000/app:v1", "[::1]:5000/app:v1"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
            ("gcr.io/a__b/c---d/e.f_g", "gcr.io/a__b/c---d/e.f_g:latest"),
        ];
        for (given, expected) in cases {
            assert_eq!(canonical(given), expected);
        }
        assert_eq!(canonical(&format!("busybox@{DIGEST}")), format!("docker.io/library/busybox@{DIGEST}"));
        assert_eq!(canonical(&format!("a/b:1@{DIGEST}")), format!("docker.io/a/b:1@{DIGEST}"));
    }

    #[test]
    fn a_digest_takes_precedence_over_the_tag() {
        let both: Reference = format!("busybox:1@{DIGEST}").parse().unwrap();
        assert_eq!((both.tag(), both.tagged()), (Some("1"), None));
        assert_eq!(both.digest().map(ToString::to_string).as_deref(), Some(DIGEST));
        let tagged: Reference = "busybox".parse().unwrap();
        assert_eq!(tagged.tagged().as_deref(), Some("docker.io/library/busybox:latest"));
    }

    #[test]
    fn invalid_references_are_rejected() {
        let long = format!("{}/a", "a".repeat(260));
        let tag = format!("a:{}", "t".repeat(129));
        let cases = [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "a/B",
            "a:",
            "a:-x",
            "a:b:c",
            "a::b",
            "a@",
            "a@sha256:1",
            "a b",
            "-a",
            "a-",
            "a._b",
            "a___b",
            "a..b",
            "../a",
            "example.com:x/a",
            "example.com:99999/a",
            "-x.io/a",
            "[::1/a",
            "[x]/a",
            "a:x/",
            "ä",
            "http://a.io/b",
            "\0",
            &DIGEST[7..],
            DIGEST,
            &long,
            &tag,
        ];
        for text in cases {
            assert!(text.parse::<Reference>().is_err(), "{text:?} was accepted");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_rejected_or_stable(text in "\\PC{0,80}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse::<Reference>().ok(), Some(reference));
            }
        }

        #[test]
        fn likely_names_are_rejected_or_stable(text in "[a-zA-Z0-9._:/@-]{1,60}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert!(reference.tag().is_some() || reference.digest().is_some());
                prop_assert!(!reference.path().contains(".."));
                prop_assert_eq!(reference.to_string().parse::<Reference>().ok(), Some(reference));
            }
        }

        #[test]
        fn well_formed_names_are_accepted(
            domain in "[a-z]{1,8}\\.[a-z]{2,3}(:[1-9][0-9]{0,3})?",
            path in "[a-z0-9]{1,6}([._-][a-z0-9]{1,6}){0,2}(/[a-z0-9]{1,6}){0,3}",
            tag in "[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}",
        ) {
            let text = format!("{domain}/{path}:{tag}");
            let reference: Reference = text.parse().map_err(|error| TestCaseError::fail(format!("{error}")))?;
            prop_assert_eq!((reference.domain(), reference.tag()), (domain.as_str(), Some(tag.as_str())));
            prop_assert_eq!(reference.path(), path);
        }
    }
}
