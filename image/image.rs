//! What callers see of an image, and of the use that containers make of it.

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::ImageConfig;
use crate::digest::Digest;

/// An image in the store.
#[derive(Clone, Debug)]
pub struct Image {
    /// The digest of its config, by which all call it.
    pub id: Digest,
    /// Its names with tags, such as `docker.io/library/busybox:1.36`.
    pub repo_tags: Vec<String>,
    /// Its names with digests, such as `docker.io/library/busybox@sha256:...`.
    pub repo_digests: Vec<String>,
    /// The bytes of manifest, config and layers as a registry keeps them, which is what containerd reports.
    pub size: u64,
    /// What it says of its containers; the whole config is [`crate::ImageStore::config_json`].
    pub config: ImageConfig,
    /// The digests of the unpacked layers, the bottom one first.
    pub layers: Vec<Digest>,
    /// The kubelet's garbage collection leaves it alone.
    pub pinned: bool,
    /// It is an artifact: files to be mounted, nothing that runs. Its id is the digest of its manifest.
    pub artifact: bool,
    /// The manifests by which it was pulled or loaded: of the image, and of the index that named it.
    pub manifests: Vec<Digest>,
}

/// An image that is mounted in a container.
#[derive(Clone, Debug)]
pub struct ImageVolume {
    /// Which.
    pub image: Arc<Image>,
    /// Its layers, the topmost first: at least two, the last of which may be an empty folder. overlayfs needs two where
    /// nothing is written, and only through a filesystem of its own are layers read-only for a container that may
    /// mount: a mount of the folder itself could be made writable.
    pub lower: Vec<PathBuf>,
}

/// The folders of a container's root filesystem, for an overlay mount.
#[derive(Clone, Debug)]
pub struct WritableLayer {
    /// What the container writes.
    pub upper: PathBuf,
    /// overlayfs's own work folder.
    pub work: PathBuf,
    /// The image's layers, the topmost first, as overlayfs wants them. Never empty.
    pub lower: Vec<PathBuf>,
    /// The image below.
    pub image: Arc<Image>,
    /// The images that are mounted in it, in the order in which they were named.
    pub volumes: Vec<ImageVolume>,
}

/// What is taken of a filesystem.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FsUsage {
    /// The mount point of the filesystem, or the folder on it.
    pub mountpoint: PathBuf,
    /// As `du` counts: blocks, not lengths.
    pub bytes: u64,
    /// Files and folders.
    pub inodes: u64,
    /// When it was measured, in nanoseconds since the epoch.
    pub at: i64,
}

/// What the store takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Images and their layers.
    pub image: FsUsage,
    /// What containers have written.
    pub containers: FsUsage,
}
