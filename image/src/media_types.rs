//! The media types of manifests, configs and layers, by the OCI image spec and by Docker.

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const CONFIGS: [&str; 2] = [OCI_CONFIG, "application/vnd.docker.container.image.v1+json"];
/// Media types of configs and layers in Docker's manifests that carry no information
/// (github.com/docker/distribution issue 1621). Docker and containerd accept them as those of an image. The
/// compression of a layer is detected from its first bytes.
pub(crate) const UNSPECIFIC_TYPES: [&str; 5] =
    ["", "application/octet-stream", "application/json", "text/html", "text/plain"];
pub(crate) const LAYER_PREFIXES: [&str; 5] = [
    OCI_LAYER,
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// Returns a media type without its parameters.
pub(crate) fn essence(text: &str) -> String {
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

pub(crate) fn is_manifest_type(text: &str) -> bool {
    [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].contains(&text)
}
