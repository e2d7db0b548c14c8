//! Descriptors: references to content, in manifests and indexes (OCI image spec, "Content Descriptors").

use serde::Deserialize;

use crate::bounded::Bounded;
use crate::digest::Digest;
use crate::platform::Platform;

/// The most additional URLs of one layer.
const MAX_URLS: usize = 16;

/// A reference to content by its digest.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) platform: Option<OfferedPlatform>,
    #[serde(default)]
    pub(crate) annotations: Box<Annotations>,
    /// Other locations of the content, for layers that a registry may not distribute (OCI descriptor,
    /// "urls").
    #[serde(default)]
    pub(crate) urls: Bounded<String, MAX_URLS>,
}

/// The annotations that berth uses, each in one place. All others are skipped, so an annotation of an image
/// cannot control anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Annotations {
    /// The name of an artifact's file (OCI image spec, "Pre-Defined Annotation Keys").
    #[serde(rename = "org.opencontainers.image.title")]
    pub(crate) title: Option<String>,
    /// In a layout a tag, by the spec. skopeo and podman may write a full reference.
    #[serde(rename = "org.opencontainers.image.ref.name")]
    pub(crate) ref_name: Option<String>,
    /// A full reference in a layout, as containerd and docker write it.
    #[serde(rename = "io.containerd.image.name")]
    pub(crate) full_name: Option<String>,
    /// The signature of the signed content (cosign's signature specification).
    #[serde(rename = "dev.cosignproject.cosign/signature")]
    pub(crate) signature: Option<String>,
}

/// The platform of an entry of an index. Missing members are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct OfferedPlatform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl OfferedPlatform {
    fn platform(&self) -> Platform {
        let Self { os, architecture, variant } = self.clone();
        Platform { os, architecture, variant }
    }
}

impl Descriptor {
    /// Returns the platform that the index specifies for this entry.
    pub(crate) fn specified_platform(&self) -> Option<Platform> {
        self.platform.as_ref().map(OfferedPlatform::platform).filter(Platform::is_specified)
    }
}
