//! Manifests, indexes and configs: parsed from bytes whose digest has been checked, and refused where they could be read
//! in two ways (CVE-2021-41190).

use std::collections::BTreeMap;

use oci_spec::image::ImageConfiguration;
use serde::Deserialize;
use serde_json::Value;

use crate::digest::Digest;
use crate::error::Error;
use crate::platform::Platform;

/// A manifest or index may not be larger: the OCI distribution spec asks registries for this much.
pub(crate) const MAX_MANIFEST: u64 = 4 << 20;
/// A config may not be larger.
pub(crate) const MAX_CONFIG: u64 = 8 << 20;
/// More layers than overlayfs can stack (its limit is 500 lower folders).
const MAX_LAYERS: usize = 500;

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIGS: [&str; 2] = [OCI_CONFIG, "application/vnd.docker.container.image.v1+json"];
const LAYER_PREFIXES: [&str; 5] = [
    OCI_LAYER,
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// Where content is, by its digest.
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
    pub(crate) annotations: BTreeMap<String, String>,
    /// Where else the content is: of layers that a registry may not keep (OCI descriptor, "urls").
    #[serde(default)]
    pub(crate) urls: Vec<String>,
}

/// The platform of an entry of an index. What is missing is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct OfferedPlatform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// What a manifest's bytes say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Manifest {
    Index(Vec<Descriptor>),
    Image(ImageManifest),
    /// Content that is no container image (OCI image spec, "Guidelines for Artifact Usage").
    Artifact(ArtifactManifest),
}

/// Files that somebody keeps in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ArtifactManifest {
    pub(crate) blobs: Vec<Descriptor>,
}

/// An image for one platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageManifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

impl Manifest {
    /// Parses `bytes`; `media_type` is what the registry's header or the descriptor says they are, if anything.
    pub(crate) fn parse(what: &str, media_type: Option<&str>, bytes: &[u8]) -> Result<Self, Error> {
        let value: Value = serde_json::from_slice(bytes).map_err(|error| Error::corrupt(what, error))?;
        let Value::Object(fields) = &value else {
            return Err(Error::corrupt(what, "is no JSON object"));
        };
        let stated = fields.get("mediaType").and_then(Value::as_str);
        let has = |field: &str| fields.get(field).is_some_and(|value| !value.is_null());
        if fields.get("schemaVersion").and_then(Value::as_u64) == Some(1) || has("fsLayers") {
            return Err(Error::unsupported(what, "is a schema 1 manifest, which has no digests to trust"));
        }
        if has("manifests") && (has("layers") || has("config")) {
            return Err(Error::corrupt(what, "claims to be both an index and an image"));
        }
        // What is found inside counts; what the field and the header say must not contradict it.
        let kind = if has("manifests") { [OCI_INDEX, DOCKER_LIST] } else { [OCI_MANIFEST, DOCKER_MANIFEST] };
        for claimed in [stated, media_type].into_iter().flatten().map(essence) {
            if is_manifest_type(&claimed) && !kind.contains(&claimed.as_str()) {
                return Err(Error::corrupt(what, format!("is called {claimed:?}, but its content is not")));
            }
        }
        if let (Some(stated), Some(header)) = (stated.map(essence), media_type.map(essence))
            && is_manifest_type(&header)
            && stated != header
        {
            let why = format!("calls itself {stated:?}, but was sent as {header:?}");
            return Err(Error::corrupt(what, why));
        }
        if let Some(other) = stated.map(essence).filter(|stated| !is_manifest_type(stated)) {
            return Err(Error::unsupported(what, format!("is of the type {other:?}, which is no image")));
        }
        if has("manifests") {
            let entries = field(what, fields.get("manifests"))?;
            return Ok(Self::Index(entries));
        }
        let image = ImageManifest::parts(what, fields)?;
        // Docker's manifests are images and nothing else.
        let docker = stated.map(essence).is_some_and(|stated| stated == DOCKER_MANIFEST);
        if docker || CONFIGS.contains(&image.config.media_type.as_str()) {
            image.check(what)?;
            return Ok(Self::Image(image));
        }
        check_count(what, &image.layers)?;
        Ok(Self::Artifact(ArtifactManifest { blobs: image.layers }))
    }
}

/// The blobs of a signature's manifest, which calls its config that of an image (cosign's signature specification).
pub(crate) fn signature_blobs(what: &str, bytes: &[u8]) -> Result<Vec<Descriptor>, Error> {
    let parts = unchecked(what, bytes)?;
    check_count(what, &parts.layers)?;
    Ok(parts.layers)
}

/// What a manifest has in the place of a configuration.
pub(crate) fn config_of(what: &str, bytes: &[u8]) -> Result<Descriptor, Error> {
    unchecked(what, bytes).map(|parts| parts.config)
}

fn unchecked(what: &str, bytes: &[u8]) -> Result<ImageManifest, Error> {
    let value: Value = serde_json::from_slice(bytes).map_err(|error| Error::corrupt(what, error))?;
    match &value {
        Value::Object(fields) => ImageManifest::parts(what, fields),
        _ => Err(Error::corrupt(what, "is no JSON object")),
    }
}

fn check_count(what: &str, layers: &[Descriptor]) -> Result<(), Error> {
    if layers.len() > MAX_LAYERS {
        return Err(Error::limit(what, format!("{} layers, the limit is {MAX_LAYERS}", layers.len())));
    }
    Ok(())
}

impl ImageManifest {
    fn parts(what: &str, fields: &serde_json::Map<String, Value>) -> Result<Self, Error> {
        Ok(Self { config: field(what, fields.get("config"))?, layers: field(what, fields.get("layers"))? })
    }

    fn check(&self, what: &str) -> Result<(), Error> {
        if !CONFIGS.contains(&self.config.media_type.as_str()) {
            let why = format!("has a config of the type {:?}: no container image", self.config.media_type);
            return Err(Error::unsupported(what, why));
        }
        if self.config.size > MAX_CONFIG {
            let why = format!("config of {} bytes, the limit is {MAX_CONFIG}", self.config.size);
            return Err(Error::limit(what, why));
        }
        check_count(what, &self.layers)?;
        for layer in &self.layers {
            let known = LAYER_PREFIXES.iter().any(|prefix| {
                layer
                    .media_type
                    .strip_prefix(prefix)
                    .is_some_and(|rest| matches!(rest, "" | "+gzip" | "+zstd" | ".gzip" | ".zstd"))
            });
            if !known {
                let why = format!("layer {} is of the type {:?}", layer.digest, layer.media_type);
                return Err(Error::unsupported(what, why));
            }
        }
        Ok(())
    }

    /// The bytes of config and layers as they are in the registry.
    pub(crate) fn content_size(&self) -> u64 {
        self.layers.iter().fold(self.config.size, |sum, layer| sum.saturating_add(layer.size))
    }
}

fn field<T: serde::de::DeserializeOwned>(what: &str, value: Option<&Value>) -> Result<T, Error> {
    T::deserialize(value.unwrap_or(&Value::Null)).map_err(|error| Error::corrupt(what, error))
}

/// A media type without its parameters.
fn essence(text: &str) -> String {
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn is_manifest_type(text: &str) -> bool {
    [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].contains(&text)
}

/// Chooses the entry of an index that runs here. An entry without a platform is the last choice: its config decides.
pub(crate) fn choose(what: &str, entries: &[Descriptor], platform: &Platform) -> Result<Descriptor, Error> {
    let mut best: Option<(u32, &Descriptor)> = None;
    for entry in entries {
        let rank = match &entry.platform {
            None => Some(0),
            Some(offered) => platform.rank(&Platform {
                os: offered.os.clone(),
                architecture: offered.architecture.clone(),
                variant: offered.variant.clone(),
            }),
        };
        // The first of equals wins, as everywhere.
        if let Some(rank) = rank
            && best.is_none_or(|(highest, _)| rank > highest)
        {
            best = Some((rank, entry));
        }
    }
    match best {
        Some((_, entry)) => Ok(entry.clone()),
        None => Err(Error::unsupported(what, format!("has no image for {platform}"))),
    }
}

/// What the config says of the image: the configuration, and the digests of the unpacked layers.
#[derive(Clone, Debug)]
pub(crate) struct ParsedConfig {
    pub(crate) config: ImageConfiguration,
    pub(crate) diff_ids: Vec<Digest>,
}

/// Parses a config and checks that it runs on `platform`.
pub(crate) fn parse_config(what: &str, bytes: &[u8], platform: &Platform) -> Result<ParsedConfig, Error> {
    let mut value: Value = serde_json::from_slice(bytes).map_err(|error| Error::corrupt(what, error))?;
    let Value::Object(fields) = &mut value else {
        return Err(Error::corrupt(what, "is no JSON object"));
    };
    // Required by the spec and missing in the output of some builders.
    for name in ["os", "architecture"] {
        let field = fields.entry(name).or_insert_with(|| Value::String(String::new()));
        if field.is_null() {
            *field = Value::String(String::new());
        }
    }
    let text = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let offered = Platform {
        os: text("os"),
        architecture: text("architecture"),
        variant: Some(text("variant")).filter(|variant| !variant.is_empty()),
    };
    let unknown = offered.os.is_empty() || offered.architecture.is_empty();
    if !unknown && platform.rank(&offered).is_none() {
        return Err(Error::unsupported(what, format!("is for {offered}; this node is {platform}")));
    }
    let config = ImageConfiguration::deserialize(&value).map_err(|error| Error::corrupt(what, error))?;
    let diff_ids: Result<Vec<Digest>, Error> =
        config.rootfs().diff_ids().iter().map(|digest| digest.parse()).collect();
    let diff_ids = diff_ids.map_err(|error| Error::corrupt(what, error))?;
    if diff_ids.len() > MAX_LAYERS {
        return Err(Error::limit(what, format!("{} layers, the limit is {MAX_LAYERS}", diff_ids.len())));
    }
    Ok(ParsedConfig { config, diff_ids })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use proptest::prelude::*;
    use serde_json::json;

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
    fn an_image_and_an_index_are_told_apart() {
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
    fn what_could_be_read_in_two_ways_is_refused() {
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
    fn what_has_another_config_is_an_artifact() {
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
    fn configs_of_docker_are_read() {
        let host = Platform { os: "linux".into(), architecture: "amd64".into(), variant: None };
        let config = json!({
            "architecture": "amd64", "os": "linux", "container": "abc", "docker_version": "20.10", "history": null,
            "container_config": { "Cmd": null },
            "config": { "Hostname": "", "Domainname": "", "User": "1000", "AttachStdin": false, "Tty": false, "Env": null,
                "Cmd": ["sh"], "Image": "sha256:1", "Volumes": null, "WorkingDir": "", "Entrypoint": null, "OnBuild": null,
                "Labels": null, "ExposedPorts": null, "ArgsEscaped": true,
                "Healthcheck": { "Test": ["CMD", "x"], "Interval": 1 } },
            "rootfs": { "type": "layers", "diff_ids": [digest("l")] },
        });
        let parsed = parse_config("test", config.to_string().as_bytes(), &host).unwrap();
        assert_eq!(parsed.diff_ids[0].to_string(), digest("l"));
        assert_eq!(parsed.config.config().as_ref().unwrap().user().as_deref(), Some("1000"));
        let bare = json!({ "rootfs": { "type": "layers", "diff_ids": [] } });
        assert!(parse_config("test", bare.to_string().as_bytes(), &host).is_ok());
        let arm =
            json!({ "os": "linux", "architecture": "arm64", "rootfs": { "type": "layers", "diff_ids": [] } });
        let error = parse_config("test", arm.to_string().as_bytes(), &host).unwrap_err();
        assert!(error.to_string().contains("linux/arm64"), "{error}");
        let bad = json!({ "rootfs": { "type": "layers", "diff_ids": ["../../etc"] } });
        assert_eq!(
            parse_config("test", bad.to_string().as_bytes(), &host).unwrap_err().kind(),
            ErrorKind::Corrupt
        );
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
