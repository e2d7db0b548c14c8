//! Manifests and indexes. They are parsed from bytes whose digest has been checked. Ambiguous documents are
//! rejected (CVE-2021-41190). Members that are not used take no memory.

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::bounded::{Bounded, is_object};
use crate::config::{MAX_CONFIG, MAX_LAYERS};
use crate::descriptor::Descriptor;
use crate::error::Error;
use crate::media_types::{
    CONFIGS, DOCKER_LIST, DOCKER_MANIFEST, LAYER_PREFIXES, OCI_INDEX, OCI_MANIFEST, UNSPECIFIC_TYPES,
    essence, is_manifest_type,
};
use crate::platform::Platform;

/// The largest manifest or index, in bytes: the OCI distribution spec recommends that registries accept this size.
pub(crate) const MAX_MANIFEST: u64 = 4 << 20;
/// The most entries of an index. Those of images have some dozens, those of archives one for each image.
const MAX_ENTRIES: usize = 10_000;

/// A manifest or an index, depending on its fields.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: Option<u64>,
    media_type: Option<String>,
    /// A field of schema 1.
    fs_layers: Option<IgnoredAny>,
    manifests: Option<Bounded<Descriptor, MAX_ENTRIES>>,
    config: Option<Descriptor>,
    layers: Option<Bounded<Descriptor, MAX_LAYERS>>,
    #[serde(default)]
    annotations: Option<CheckpointMarks>,
}

/// The annotations that mark an image with the checkpoint of a container. Only their presence counts.
#[derive(Default, Deserialize)]
#[serde(default)]
struct CheckpointMarks {
    /// CRI-O, and containerd up to 2.0.
    #[serde(rename = "io.kubernetes.cri-o.annotations.checkpoint.name")]
    crio: Option<IgnoredAny>,
    /// Kubernetes and newer tools.
    #[serde(rename = "org.criu.checkpoint.container.name")]
    criu: Option<IgnoredAny>,
}

/// A parsed manifest or index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Manifest {
    Index(Vec<Descriptor>),
    Image(ImageManifest),
    /// Content that is not a container image (OCI image spec, "Guidelines for Artifact Usage").
    Artifact(ArtifactManifest),
}

/// The manifest of an artifact: a list of files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ArtifactManifest {
    pub(crate) blobs: Vec<Descriptor>,
}

/// An image for one platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageManifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
    /// Whether it contains the checkpoint of a container.
    pub(crate) checkpoint: bool,
}

impl Manifest {
    /// Parses `bytes`. `media_type` is the type in the registry's header or in the descriptor, if any.
    pub(crate) fn parse(what: &str, media_type: Option<&str>, bytes: &[u8]) -> Result<Self, Error> {
        let document = Document::parse(what, bytes)?;
        let stated = document.media_type.as_deref();
        if document.schema_version == Some(1) || document.fs_layers.is_some() {
            return Err(Error::unsupported(what, "schema 1 manifest, which has no verifiable digests"));
        }
        let is_index = document.manifests.is_some();
        if is_index && (document.layers.is_some() || document.config.is_some()) {
            return Err(Error::corrupt(what, "both an index and an image"));
        }
        // The content decides. The field and the header must not contradict it.
        let kind = if is_index { [OCI_INDEX, DOCKER_LIST] } else { [OCI_MANIFEST, DOCKER_MANIFEST] };
        for claimed in [stated, media_type].into_iter().flatten().map(essence) {
            if is_manifest_type(&claimed) && !kind.contains(&claimed.as_str()) {
                return Err(Error::corrupt(
                    what,
                    format!("media type is {claimed:?}, but the content is not"),
                ));
            }
        }
        if let (Some(stated), Some(header)) = (stated.map(essence), media_type.map(essence))
            && is_manifest_type(&header)
            && stated != header
        {
            let why = format!("mediaType is {stated:?}, but the Content-Type is {header:?}");
            return Err(Error::corrupt(what, why));
        }
        if let Some(other) = stated.map(essence).filter(|stated| !is_manifest_type(stated)) {
            return Err(Error::unsupported(what, format!("media type {other:?} is not an image")));
        }
        // A manifest of Docker's type is always an image.
        let docker =
            [stated, media_type].into_iter().flatten().map(essence).any(|claimed| claimed == DOCKER_MANIFEST);
        if let Some(entries) = document.manifests {
            return Ok(Self::Index(entries.all(what, "entries")?));
        }
        let image = document.image(what)?;
        if docker || CONFIGS.contains(&image.config.media_type.as_str()) {
            image.check(what, docker)?;
            return Ok(Self::Image(image));
        }
        Ok(Self::Artifact(ArtifactManifest { blobs: image.layers }))
    }
}

impl Document {
    fn parse(what: &str, bytes: &[u8]) -> Result<Self, Error> {
        if !is_object(bytes) {
            // The parser reports content that is not JSON.
            let _any: IgnoredAny =
                serde_json::from_slice(bytes).map_err(|error| Error::corrupt(what, error))?;
            return Err(Error::corrupt(what, "not a JSON object"));
        }
        berth_json::from_slice(bytes).map_err(|error| Error::corrupt(what, error))
    }

    fn image(self, what: &str) -> Result<ImageManifest, Error> {
        let missing = |field: &str| Error::corrupt(what, format!("missing {field}"));
        let marks = self.annotations.unwrap_or_default();
        Ok(ImageManifest {
            checkpoint: marks.crio.is_some() || marks.criu.is_some(),
            config: self.config.ok_or_else(|| missing("config"))?,
            layers: self.layers.ok_or_else(|| missing("layers"))?.all(what, "layers")?,
        })
    }
}

/// Returns the blobs of a signature's manifest. Its config has the media type of an image config (cosign's
/// signature specification).
pub(crate) fn signature_blobs(what: &str, bytes: &[u8]) -> Result<Vec<Descriptor>, Error> {
    Document::parse(what, bytes)?.image(what).map(|parts| parts.layers)
}

/// Returns the config descriptor of a manifest.
pub(crate) fn config_of(what: &str, bytes: &[u8]) -> Result<Descriptor, Error> {
    Document::parse(what, bytes)?.image(what).map(|parts| parts.config)
}

impl ImageManifest {
    /// Checks types and sizes. In a Docker manifest, unspecific media types of old registries and builders
    /// are accepted.
    fn check(&self, what: &str, docker: bool) -> Result<(), Error> {
        let unspecific =
            |media_type: &str| docker && UNSPECIFIC_TYPES.contains(&essence(media_type).as_str());
        let config = self.config.media_type.as_str();
        if !CONFIGS.contains(&config) && !unspecific(config) {
            let why = format!("not a container image: the config has the type {:?}", self.config.media_type);
            return Err(Error::unsupported(what, why));
        }
        if self.config.size > MAX_CONFIG {
            let why = format!("config of {} bytes, the limit is {MAX_CONFIG}", self.config.size);
            return Err(Error::limit(what, why));
        }
        for layer in &self.layers {
            let supported = LAYER_PREFIXES.iter().any(|prefix| {
                layer
                    .media_type
                    .strip_prefix(prefix)
                    .is_some_and(|rest| matches!(rest, "" | "+gzip" | "+zstd" | ".gzip" | ".zstd"))
            });
            if !supported && !unspecific(&layer.media_type) {
                let why = format!("layer {} has the type {:?}", layer.digest, layer.media_type);
                return Err(Error::unsupported(what, why));
            }
        }
        Ok(())
    }

    /// Returns the size of config and layers in the registry, in bytes.
    pub(crate) fn content_size(&self) -> u64 {
        self.layers.iter().fold(self.config.size, |sum, layer| sum.saturating_add(layer.size))
    }
}

/// Chooses the entry of an index that fits the platform best. An entry without a platform is the last choice:
/// its config decides.
pub(crate) fn choose(what: &str, entries: &[Descriptor], platform: &Platform) -> Result<Descriptor, Error> {
    let mut best: Option<(u32, &Descriptor)> = None;
    for entry in entries {
        let rank = entry.specified_platform().map_or(Some(0), |offered| platform.rank(&offered));
        // The first of equal entries is chosen, as in other runtimes.
        if let Some(rank) = rank
            && best.is_none_or(|(highest, _)| rank > highest)
        {
            best = Some((rank, entry));
        }
    }
    match best {
        Some((_, entry)) => Ok(entry.clone()),
        None => Err(Error::unsupported(what, format!("no image for {platform}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::Annotations;
    use crate::digest::Digest;
    use crate::error::ErrorKind;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn digest(seed: &str) -> String {
        Digest::of(crate::digest::Algorithm::Sha256, seed.as_bytes()).to_string()
    }

    fn image() -> Value {
        json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": { "mediaType": CONFIGS[0], "digest": digest("c"), "size": 10 },
            "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar+zstd", "digest": digest("l"), "size": 20 }],
        })
    }

    fn parse(value: &Value, header: Option<&str>) -> Result<Manifest, Error> {
        Manifest::parse("test", header, value.to_string().as_bytes())
    }

    fn with(name: &str, field: Value) -> Value {
        let mut value = image();
        value[name] = field;
        value
    }

    #[test]
    fn an_image_and_an_index_are_distinguished() {
        let Manifest::Image(parsed) =
            parse(&image(), Some("application/vnd.oci.image.manifest.v1+json; x=y")).unwrap()
        else {
            panic!("no image");
        };
        assert_eq!(parsed.content_size(), 30);
        let index = json!({ "schemaVersion": 2, "manifests": [
            { "mediaType": OCI_MANIFEST, "digest": digest("a"), "size": 1, "platform": { "os": "linux", "architecture": "arm64" } },
            { "mediaType": OCI_MANIFEST, "digest": digest("b"), "size": 1, "platform": { "os": "linux", "architecture": "amd64" } },
            { "mediaType": OCI_MANIFEST, "digest": digest("c"), "size": 1, "platform": { "os": "unknown", "architecture": "unknown" } },
        ]});
        let Manifest::Index(entries) = parse(&index, Some(DOCKER_LIST)).unwrap() else {
            panic!("no index");
        };
        let host = Platform { os: "linux".into(), architecture: "amd64".into(), variant: None };
        assert_eq!(choose("test", &entries, &host).unwrap().digest.to_string(), digest("b"));
        let other = Platform { architecture: "s390x".into(), ..host };
        assert_eq!(choose("test", &entries, &other).unwrap_err().kind(), ErrorKind::InvalidInput);
    }

    #[test]
    fn ambiguous_documents_are_rejected() {
        for (value, header) in [
            (with("manifests", json!([])), None),
            (image(), Some(OCI_INDEX)),
            (image(), Some(DOCKER_MANIFEST)),
            (with("mediaType", json!(OCI_INDEX)), None),
            (with("mediaType", json!(DOCKER_LIST)), Some(DOCKER_LIST)),
            (with("config", json!(null)), None),
            (with("layers", json!({})), None),
            (json!([]), None),
        ] {
            let error = parse(&value, header).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        }
        for value in [
            json!({ "schemaVersion": 1, "fsLayers": [] }),
            with("fsLayers", json!([])),
            with("mediaType", json!("application/vnd.oci.artifact.manifest.v1+json")),
            with(
                "layers",
                json!([{ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "digest": digest(""), "size": 2 }]),
            ),
        ] {
            assert!(matches!(parse(&value, None), Err(Error::Unsupported { .. })), "{value}");
        }
    }

    #[test]
    fn a_manifest_with_another_config_is_an_artifact() {
        let config =
            json!({ "mediaType": "application/vnd.oci.empty.v1+json", "digest": digest(""), "size": 2 });
        let mut value = with("config", config);
        value["layers"] = json!([{ "mediaType": "text/plain", "digest": digest("a"), "size": 3 }]);
        let Manifest::Artifact(artifact) = parse(&value, Some(OCI_MANIFEST)).unwrap() else {
            panic!("no artifact");
        };
        assert_eq!(artifact.blobs[0].size, 3);
        value["mediaType"] = json!(DOCKER_MANIFEST);
        assert!(matches!(parse(&value, None), Err(Error::Unsupported { .. })), "docker has none");
    }

    #[test]
    fn unspecific_types_are_accepted_in_a_docker_manifest() {
        let docker = |config: Value, layer: Value| {
            let mut value = with("mediaType", json!(DOCKER_MANIFEST));
            value["config"]["mediaType"] = config;
            value["layers"][0]["mediaType"] = layer;
            value
        };
        let layer = "application/vnd.docker.image.rootfs.diff.tar.gzip";
        for config in [
            json!("application/octet-stream"),
            json!("application/json"),
            json!("text/html"),
            json!(""),
            json!(null),
        ] {
            let parsed = parse(&docker(config.clone(), json!(layer)), Some(DOCKER_MANIFEST)).unwrap();
            assert!(matches!(parsed, Manifest::Image(_)), "{config}");
        }
        let parsed = parse(&docker(json!(CONFIGS[1]), json!("application/octet-stream")), None).unwrap();
        assert!(matches!(parsed, Manifest::Image(_)));
        let mut unstated = docker(json!("application/octet-stream"), json!(layer));
        unstated.as_object_mut().unwrap().remove("mediaType");
        assert!(matches!(parse(&unstated, Some(DOCKER_MANIFEST)).unwrap(), Manifest::Image(_)));
        for wrong in ["application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "application/x-model"] {
            assert!(parse(&docker(json!(CONFIGS[1]), json!(wrong)), None).is_err(), "{wrong}");
        }
        assert!(parse(&docker(json!("application/x-model"), json!(layer)), None).is_err());
    }

    #[test]
    fn an_entry_without_a_platform_is_the_last_choice() {
        let entry = |seed: &str, platform: Value| json!({ "mediaType": OCI_MANIFEST, "digest": digest(seed), "size": 1, "platform": platform });
        let index = json!({ "schemaVersion": 2, "manifests": [
            entry("none", json!(null)),
            entry("empty", json!({ "os": null, "architecture": "" })),
            entry("other", json!({ "os": "Linux", "architecture": "x86_64", "variant": null })),
        ]});
        let Manifest::Index(entries) = parse(&index, None).unwrap() else { panic!("no index") };
        let host = |architecture: &str| Platform {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: None,
        };
        assert_eq!(choose("test", &entries, &host("amd64")).unwrap().digest.to_string(), digest("other"));
        assert_eq!(choose("test", &entries, &host("s390x")).unwrap().digest.to_string(), digest("none"));
    }

    #[test]
    fn null_members_are_absent_and_other_annotations_are_skipped() {
        let mut value = image();
        let layer = &mut value["layers"][0];
        layer["annotations"] = json!(null);
        layer["urls"] = json!(null);
        value["config"]["annotations"] =
            json!({ "org.opencontainers.image.title": "t", "other": { "x": [1] } });
        value["annotations"] = json!({ "io.kubernetes.cri-o.Log": "/etc/passwd" });
        let Manifest::Image(parsed) = parse(&value, None).unwrap() else { panic!("no image") };
        assert!(!parsed.checkpoint);
        for name in ["io.kubernetes.cri-o.annotations.checkpoint.name", "org.criu.checkpoint.container.name"]
        {
            let marked = parse(&with("annotations", json!({ name: "web" })), None).unwrap();
            assert!(matches!(marked, Manifest::Image(ImageManifest { checkpoint: true, .. })), "{name}");
        }
        assert_eq!(*parsed.layers[0].annotations, Annotations::default());
        let title = Annotations { title: Some("t".to_owned()), ..Annotations::default() };
        assert_eq!(*parsed.config.annotations, title);
    }

    #[test]
    fn lists_have_limits() {
        let layer = image()["layers"][0].clone();
        let many = with("layers", json!(vec![layer; 501]));
        let entry = json!({ "mediaType": OCI_MANIFEST, "digest": digest("a"), "size": 1 });
        let index = json!({ "schemaVersion": 2, "manifests": vec![entry; 10_001] });
        for (value, figures) in
            [(many, "501 layers, the limit is 500"), (index, "10001 entries, the limit is 10000")]
        {
            let error = parse(&value, None).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::LimitExceeded);
            assert!(error.to_string().contains(figures), "{error}");
        }
    }

    proptest! {
        #[test]
        fn broken_manifests_never_panic(cut in 0usize..400, byte: u8) {
            let mut bytes = image().to_string().into_bytes();
            let at = cut % bytes.len();
            bytes[at] = byte;
            drop(Manifest::parse("test", None, &bytes));
            drop(Manifest::parse("test", Some(OCI_INDEX), &bytes[..at]));
        }
    }
}
