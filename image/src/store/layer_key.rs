//! The names of the folders of layers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::Error;

const PATCH: &str = "patch-";
const ARTIFACT: &str = "artifact-";

/// The name of a layer's folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum LayerKey {
    /// A layer as it is, by its diff id.
    Diff(Digest),
    /// The patch above the topmost layer of a chain, by the chain's id (OCI image config, "ChainID").
    Patch(Digest),
    /// The files of an artifact, by its manifest.
    Artifact(Digest),
}

impl LayerKey {
    pub(crate) fn file_name(&self) -> String {
        match self {
            Self::Diff(digest) => digest.file_name(),
            Self::Patch(chain) => format!("{PATCH}{}", chain.file_name()),
            Self::Artifact(manifest) => format!("{ARTIFACT}{}", manifest.file_name()),
        }
    }
}

impl FromStr for LayerKey {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let invalid = || Error::invalid(format!("layer {name:?}"), "the name is not a digest");
        let key = if let Some(chain) = name.strip_prefix(PATCH) {
            Digest::from_file_name(chain).map(Self::Patch)
        } else if let Some(manifest) = name.strip_prefix(ARTIFACT) {
            Digest::from_file_name(manifest).map(Self::Artifact)
        } else {
            Digest::from_file_name(name).map(Self::Diff)
        };
        key.ok_or_else(invalid)
    }
}

impl TryFrom<String> for LayerKey {
    type Error = Error;

    fn try_from(name: String) -> Result<Self, Error> {
        name.parse()
    }
}

impl From<LayerKey> for String {
    fn from(key: LayerKey) -> Self {
        key.file_name()
    }
}

impl fmt::Display for LayerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file_name())
    }
}
