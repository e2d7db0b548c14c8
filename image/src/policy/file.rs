//! The format of the policy, and its scopes.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::identity::Identity;
use super::signature::Key;
use crate::error::Error;
use crate::reference::Reference;

/// A policy file. Unknown keys make it invalid, as its manual page requires: a mistyped key must not admit
/// images.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Policy {
    default: Vec<Requirement>,
    #[serde(default)]
    transports: BTreeMap<String, BTreeMap<String, Vec<Requirement>>>,
}

/// A requirement on an image. An image must meet all requirements of a scope.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub(super) enum Requirement {
    InsecureAcceptAnything {},
    Reject {},
    SigstoreSigned(Box<SigstoreSigned>),
    /// GPG signatures. The requirement is parsed, so the rest of the file can be used, but it is never met.
    SignedBy {
        #[serde(rename = "keyType")]
        _key_type: Option<IgnoredAny>,
        #[serde(rename = "keyPath")]
        _key_path: Option<IgnoredAny>,
        #[serde(rename = "keyPaths")]
        _key_paths: Option<IgnoredAny>,
        #[serde(rename = "keyData")]
        _key_data: Option<IgnoredAny>,
        #[serde(rename = "signedIdentity")]
        _signed_identity: Option<IgnoredAny>,
    },
}

/// The keys. A signature by one of them is required.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct SigstoreSigned {
    key_path: Option<PathBuf>,
    key_paths: Option<Vec<PathBuf>>,
    key_data: Option<String>,
    key_datas: Option<Vec<String>>,
    signed_identity: Option<Identity>,
    // Certificates and transparency logs. They are parsed so that the error can name the unsupported key.
    fulcio: Option<serde_json::Value>,
    pki: Option<serde_json::Value>,
    rekor_public_key_path: Option<serde_json::Value>,
    rekor_public_key_paths: Option<serde_json::Value>,
    rekor_public_key_data: Option<serde_json::Value>,
    rekor_public_key_datas: Option<serde_json::Value>,
}

/// The source of an image, as policies distinguish it (containers-transports(5)).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Transport<'a> {
    /// `docker`: a registry.
    Registry(&'a Reference),
    /// `oci`: a folder.
    Layout(&'a Path),
    /// A tar archive with an OCI image layout (`oci-archive`).
    OciArchive(&'a Path),
    /// A tar archive as `docker save` writes it (`docker-archive`).
    DockerArchive(&'a Path),
}

impl<'a> Transport<'a> {
    /// Parses an archive's origin that [`Self::origin`] returned.
    pub(crate) fn of_origin(origin: &'a str) -> Option<Self> {
        let (name, path) = origin.split_once(':')?;
        let path = Path::new(path);
        Some(match name {
            "oci" => Self::Layout(path),
            "oci-archive" => Self::OciArchive(path),
            "docker-archive" => Self::DockerArchive(path),
            _ => return None,
        })
    }

    /// Returns the origin of an archive for the record of its images: `docker-archive:/path`. None for a
    /// registry.
    pub(crate) fn origin(&self) -> Option<String> {
        match self {
            Self::Registry(_) => None,
            Self::Layout(path) | Self::OciArchive(path) | Self::DockerArchive(path) => {
                Some(format!("{}:{}", self.name(), path.display()))
            }
        }
    }
}

impl Transport<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::Registry(_) => "docker",
            Self::Layout(_) => "oci",
            Self::OciArchive(_) => "oci-archive",
            Self::DockerArchive(_) => "docker-archive",
        }
    }

    /// Returns the scopes of an image, the most specific first (containers-policy.json(5), "docker:" and
    /// "oci:").
    fn scopes(&self) -> Vec<String> {
        let mut scopes = Vec::new();
        match self {
            Self::Registry(reference) => {
                scopes.push(reference.identity());
                let mut name = reference.name();
                scopes.push(name.clone());
                while let Some((above, _)) = name.rsplit_once('/') {
                    name = above.to_owned();
                    scopes.push(name.clone());
                }
                let mut host = reference.domain().split(':').next().unwrap_or_default();
                while let Some((_, above)) = host.split_once('.') {
                    scopes.push(format!("*.{above}"));
                    host = above;
                }
            }
            Self::Layout(path) | Self::OciArchive(path) | Self::DockerArchive(path) => {
                scopes.extend(path.ancestors().map(|path| path.display().to_string()));
            }
        }
        scopes.push(String::new());
        scopes
    }
}

impl Policy {
    /// Reads a policy. None if the file does not exist.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, Error> {
        match fs::read(path) {
            Ok(text) => Self::parse(&text)
                .map(Some)
                .map_err(|why| Error::untrusted(format!("policy {}", path.display()), why)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read", path, error)),
        }
    }

    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let policy: Self = berth_json::from_slice(text).map_err(|error| error.to_string())?;
        for part in policy.parts() {
            if part.is_empty() {
                return Err("empty list of requirements".to_owned());
            }
            for requirement in part {
                if let Requirement::SigstoreSigned(signed) = requirement {
                    signed.check()?;
                }
            }
        }
        Ok(policy)
    }

    fn parts(&self) -> impl Iterator<Item = &Vec<Requirement>> {
        self.transports.values().flat_map(BTreeMap::values).chain([&self.default])
    }

    /// Returns the requirements of all scopes.
    pub(super) fn all_requirements(&self) -> impl Iterator<Item = &Requirement> {
        self.parts().flatten()
    }

    /// Returns the name of the scope that applies to an image, and its requirements.
    pub(super) fn requirements(&self, transport: &Transport<'_>) -> (String, &[Requirement]) {
        let name = transport.name();
        let matching = self.transports.get(name).and_then(|scopes| {
            let mut names = transport.scopes().into_iter();
            names.find_map(|scope| scopes.get(&scope).map(|requirements| (scope, requirements)))
        });
        match matching {
            Some((scope, requirements)) => (format!("transports.{name}.{scope:?}"), requirements),
            None => ("default".to_owned(), &self.default),
        }
    }
}

impl Requirement {
    pub(super) fn describe(&self) -> String {
        match self {
            Self::InsecureAcceptAnything {} => "any image is accepted".to_owned(),
            Self::Reject {} => "the image is rejected".to_owned(),
            Self::SigstoreSigned(signed) => {
                format!("a sigstore signature is required for {}", signed.identity())
            }
            Self::SignedBy { .. } => {
                "a GPG signature is required, which berth does not verify: the image is rejected".to_owned()
            }
        }
    }
}

impl SigstoreSigned {
    fn check(&self) -> Result<(), String> {
        let unsupported = [
            ("fulcio", &self.fulcio),
            ("pki", &self.pki),
            ("rekorPublicKeyPath", &self.rekor_public_key_path),
            ("rekorPublicKeyPaths", &self.rekor_public_key_paths),
            ("rekorPublicKeyData", &self.rekor_public_key_data),
            ("rekorPublicKeyDatas", &self.rekor_public_key_datas),
        ];
        if let Some((name, _)) = unsupported.iter().find(|(_, value)| value.is_some()) {
            return Err(format!("sigstoreSigned: {name} is not supported, use keys"));
        }
        let given = [
            self.key_path.is_some(),
            self.key_paths.as_ref().is_some_and(|paths| !paths.is_empty()),
            self.key_data.is_some(),
            self.key_datas.as_ref().is_some_and(|datas| !datas.is_empty()),
        ];
        if given.iter().filter(|given| **given).count() != 1 {
            return Err(
                "sigstoreSigned: exactly one of keyPath, keyPaths, keyData and keyDatas is required".into()
            );
        }
        if let Some(identity) = &self.signed_identity {
            identity.valid()?;
        }
        Ok(())
    }

    /// Returns the identity that a signature must have.
    pub(super) fn identity(&self) -> &Identity {
        self.signed_identity.as_ref().unwrap_or(&Identity::MatchRepoDigestOrExact {})
    }

    /// Reads the keys. A signature by one of them is required.
    pub(super) async fn keys(&self) -> Result<Vec<Key>, String> {
        let mut keys = Vec::new();
        for path in self.key_path.iter().chain(self.key_paths.iter().flatten()) {
            let text = tokio::fs::read(path)
                .await
                .map_err(|error| format!("failed to read {}: {error}", path.display()))?;
            keys.push(Key::from_pem(&text).map_err(|why| format!("invalid key {}: {why}", path.display()))?);
        }
        for data in self.key_data.iter().chain(self.key_datas.iter().flatten()) {
            let text = STANDARD.decode(data).map_err(|error| format!("invalid key data: {error}"))?;
            keys.push(Key::from_pem(&text).map_err(|why| format!("invalid key data: {why}"))?);
        }
        Ok(keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope_of(policy: &Policy, reference: &str) -> String {
        policy.requirements(&Transport::Registry(&reference.parse().unwrap())).0
    }

    #[test]
    fn the_most_specific_scope_applies() {
        let accept = r#"[{"type":"insecureAcceptAnything"}]"#;
        let scopes = [
            "",
            "r.example",
            "r.example/team",
            "r.example/team/app",
            "r.example/team/app:1",
            "*.wild.example",
        ];
        let scopes = scopes.map(|scope| format!("{scope:?}: {accept}")).join(",");
        let text = format!(
            r#"{{"default": [{{"type":"reject"}}], "transports": {{"docker": {{{scopes}}}, "oci-archive": {{"/trusted": {accept}}}}}}}"#
        );
        let policy = Policy::parse(text.as_bytes()).unwrap();
        for (reference, scope) in [
            ("r.example/team/app:1", "r.example/team/app:1"),
            ("r.example/team/app:2", "r.example/team/app"),
            ("r.example/team/other", "r.example/team"),
            ("r.example/teams/other", "r.example"),
            ("a.b.wild.example:5000/x", "*.wild.example"),
            ("wild.example/x", ""),
            ("busybox", ""),
        ] {
            assert_eq!(scope_of(&policy, reference), format!("transports.docker.{scope:?}"), "{reference}");
        }
        let archive = |path: &str| policy.requirements(&Transport::OciArchive(Path::new(path))).0;
        assert_eq!(archive("/trusted/a.tar"), "transports.oci-archive.\"/trusted\"");
        assert_eq!(archive("/trusting/a.tar"), "default");
        assert_eq!(policy.requirements(&Transport::Layout(Path::new("/trusted"))).0, "default");
    }

    #[test]
    fn unknown_requirements_are_rejected() {
        for text in [
            "",
            "{}",
            r#"{"default": []}"#,
            r#"{"default": [{"type":"acceptAll"}]}"#,
            r#"{"default": [{"type":"reject","why":"x"}]}"#,
            r#"{"default": [{"type":"reject"}], "transport": {}}"#,
            r#"{"default": [{"type":"reject"}], "transports": {"docker": {"x": []}}}"#,
            r#"{"default": [{"type":"sigstoreSigned"}]}"#,
            r#"{"default": [{"type":"sigstoreSigned","keyPath":"/a","keyData":"eA=="}]}"#,
            r#"{"default": [{"type":"sigstoreSigned","keyPath":"/a","rekorPublicKeyPath":"/b"}]}"#,
            r#"{"default": [{"type":"sigstoreSigned","keyPath":"/a","signedIdentity":{"type":"no"}}]}"#,
            r#"{"default": [{"type":"sigstoreSigned","keyPath":"/a","signedIdentity":{"type":"exactReference","dockerReference":"r.example/a"}}]}"#,
        ] {
            assert!(Policy::parse(text.as_bytes()).is_err(), "{text}");
        }
        let gpg = r#"{"default": [{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k"}]}"#;
        let policy = Policy::parse(gpg.as_bytes()).unwrap();
        assert!(policy.default[0].describe().contains("rejected"));
    }
}
