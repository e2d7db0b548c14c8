//! The identity that a signature must have for an image (containers-policy.json(5), "signedIdentity").

use std::fmt;

use serde::Deserialize;

use crate::reference::Reference;

/// The comparison of the name in a signature with the pulled name.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub(super) enum Identity {
    /// The same repository and tag.
    MatchExact {},
    /// The same repository and tag. For an image that is pulled by digest, the same repository.
    MatchRepoDigestOrExact {},
    /// The same repository, with any tag.
    MatchRepository {},
    /// This name, for any pulled name.
    ExactReference { docker_reference: String },
    /// This repository, for any pulled name.
    ExactRepository { docker_repository: String },
    /// A name below `prefix` is replaced by one below `signed_prefix`: for mirrors.
    #[serde(rename = "remapIdentity")]
    Remap { prefix: String, signed_prefix: String },
}

impl Identity {
    /// Checks the names in the identity.
    pub(super) fn valid(&self) -> Result<(), String> {
        match self {
            Self::ExactReference { docker_reference } => Named::parse(docker_reference)?.specific().map(drop),
            Self::ExactRepository { docker_repository } => Named::parse(docker_repository).map(drop),
            Self::Remap { prefix, signed_prefix } if prefix.is_empty() || signed_prefix.is_empty() => {
                Err("remapIdentity: empty prefix".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// Checks that the name `signed` in a signature covers the pulled image.
    pub(super) fn check(&self, pulled: &Reference, signed: &str) -> Result<(), String> {
        let named = Named::parse(signed)?;
        let fits = match self {
            Self::MatchExact {} => named.specific()? == pulled.identity(),
            Self::MatchRepoDigestOrExact {} => repo_digest_or_exact(pulled, &named)?,
            Self::MatchRepository {} => named.repository == pulled.name(),
            Self::ExactReference { docker_reference } => {
                named.specific()? == Named::parse(docker_reference)?.specific()?
            }
            Self::ExactRepository { docker_repository } => {
                named.repository == Named::parse(docker_repository)?.repository
            }
            Self::Remap { prefix, signed_prefix } => {
                let mapped = match remap(&pulled.identity(), prefix, signed_prefix) {
                    Some(mapped) => mapped.parse().map_err(|error| format!("remapIdentity: {error}"))?,
                    None => pulled.clone(),
                };
                repo_digest_or_exact(&mapped, &named)?
            }
        };
        if fits { Ok(()) } else { Err(format!("the signature is for the name {signed:?}")) }
    }
}

fn repo_digest_or_exact(pulled: &Reference, named: &Named) -> Result<bool, String> {
    let specific = named.specific()?;
    Ok(match pulled.digest() {
        Some(_) => named.repository == pulled.name(),
        None => specific == pulled.identity(),
    })
}

/// Replaces a prefix of whole components: `r.example/team` is not a prefix of `r.example/teams`.
fn remap(name: &str, prefix: &str, signed_prefix: &str) -> Option<String> {
    let rest = name.strip_prefix(prefix)?;
    let whole = rest.is_empty() || rest.starts_with(['/', ':', '@']);
    // After a bare host, a colon separates the port.
    let port = rest.starts_with(':') && !prefix.contains('/');
    (whole && !port).then(|| format!("{signed_prefix}{rest}"))
}

/// A name in a signature or a policy.
struct Named {
    repository: String,
    /// The complete name, if it has a tag or a digest. A missing tag is not `latest` here.
    specific: Option<String>,
}

impl Named {
    fn parse(text: &str) -> Result<Self, String> {
        let reference: Reference = text.parse().map_err(|error| format!("{error}"))?;
        let last = text.rsplit('/').next().unwrap_or_default();
        let specific = last.contains([':', '@']).then(|| reference.identity());
        Ok(Self { repository: reference.name(), specific })
    }

    fn specific(&self) -> Result<&str, String> {
        let repository = &self.repository;
        self.specific.as_deref().ok_or_else(|| format!("{repository:?} has neither tag nor digest"))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MatchExact {} => f.write_str("the pulled name"),
            Self::MatchRepoDigestOrExact {} => {
                f.write_str("the pulled name, or its repository if pulled by digest")
            }
            Self::MatchRepository {} => f.write_str("the pulled repository"),
            Self::ExactReference { docker_reference } => f.write_str(docker_reference),
            Self::ExactRepository { docker_repository } => write!(f, "the repository {docker_repository}"),
            Self::Remap { prefix, signed_prefix } => {
                write!(f, "the pulled name with {signed_prefix} in place of {prefix}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn fits(identity: &str, pulled: &str, signed: &str) -> bool {
        let identity: Identity = serde_json::from_str(identity).unwrap();
        identity.valid().unwrap();
        identity.check(&pulled.parse().unwrap(), signed).is_ok()
    }

    #[test]
    fn names_are_compared_by_the_identity() {
        let by_digest = format!("r.example/a@{DIGEST}");
        for (identity, pulled, signed, expected) in [
            (r#"{"type":"matchExact"}"#, "r.example/a:1", "r.example/a:1", true),
            (r#"{"type":"matchExact"}"#, "r.example/a:1", "r.example/a:2", false),
            (r#"{"type":"matchExact"}"#, &by_digest, "r.example/a:1", false),
            (r#"{"type":"matchExact"}"#, "r.example/a", "r.example/a", false),
            (r#"{"type":"matchRepoDigestOrExact"}"#, "busybox:1", "docker.io/library/busybox:1", true),
            (r#"{"type":"matchRepoDigestOrExact"}"#, &by_digest, "r.example/a:9", true),
            (r#"{"type":"matchRepoDigestOrExact"}"#, &by_digest, "r.example/b:9", false),
            (r#"{"type":"matchRepoDigestOrExact"}"#, "r.example/a:1", "r.example/a", false),
            (r#"{"type":"matchRepository"}"#, "r.example/a:1", "r.example/a", true),
            (r#"{"type":"matchRepository"}"#, "r.example/a:1", "r.example/a:2", true),
            (r#"{"type":"matchRepository"}"#, "r.example/a:1", "r.example/ab", false),
            (
                r#"{"type":"exactReference","dockerReference":"o.example/x:1"}"#,
                "r.example/a:1",
                "o.example/x:1",
                true,
            ),
            (
                r#"{"type":"exactReference","dockerReference":"o.example/x:1"}"#,
                "r.example/a:1",
                "r.example/a:1",
                false,
            ),
            (
                r#"{"type":"exactRepository","dockerRepository":"o.example/x"}"#,
                "r.example/a:1",
                "o.example/x:7",
                true,
            ),
            (
                r#"{"type":"remapIdentity","prefix":"m.example","signedPrefix":"r.example"}"#,
                "m.example/a:1",
                "r.example/a:1",
                true,
            ),
            (
                r#"{"type":"remapIdentity","prefix":"m.example","signedPrefix":"r.example"}"#,
                "n.example/a:1",
                "n.example/a:1",
                true,
            ),
            (
                r#"{"type":"remapIdentity","prefix":"m.example/t","signedPrefix":"r.example/t"}"#,
                "m.example/ts/a:1",
                "r.example/ts/a:1",
                false,
            ),
            (
                r#"{"type":"remapIdentity","prefix":"m.example","signedPrefix":"r.example"}"#,
                "m.example:5000/a:1",
                "r.example:5000/a:1",
                false,
            ),
        ] {
            assert_eq!(fits(identity, pulled, signed), expected, "{identity} {pulled} {signed}");
        }
    }
}
