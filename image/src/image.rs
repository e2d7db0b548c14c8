//! The public types for images and for the storage that containers use.

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::ImageConfig;
use crate::digest::Digest;

/// An image in the store.
#[derive(Clone, Debug)]
pub struct Image {
    /// The digest of its config, as in all container tools.
    pub id: Digest,
    /// Its names with tags, such as `docker.io/library/busybox:1.36`.
    pub repo_tags: Vec<String>,
    /// Its names with digests, such as `docker.io/library/busybox@sha256:...`.
    pub repo_digests: Vec<String>,
    /// The size of manifest, config and layers in a registry, in bytes, as containerd reports it.
    pub size: u64,
    /// The settings for its containers. The whole config is [`crate::ImageStore::config_json`].
    pub config: ImageConfig,
    /// The digests of the unpacked layers, the bottom one first.
    pub layers: Vec<Digest>,
    /// The kubelet's garbage collection does not remove it.
    pub pinned: bool,
    /// It is an artifact: files that are mounted and never run. Its id is the digest of its manifest.
    pub artifact: bool,
    /// The manifests by which it was pulled or loaded: that of the image, and those of the indexes that lead
    /// to it.
    pub manifests: Vec<Digest>,
    /// It contains the checkpoint of a container.
    pub checkpoint: bool,
}

/// An image that is mounted in a container.
#[derive(Clone, Debug)]
pub struct ImageVolume {
    /// The image whose files are mounted.
    pub image: Arc<Image>,
    /// Its layers, the topmost first. There are at least two; the last may be an empty folder, since
    /// overlayfs needs two layers without a writable one. An overlay has its own superblock, so the
    /// layers are read-only also for a container that may mount. A container could make a bind mount of the
    /// folder writable.
    pub lower: Vec<PathBuf>,
}

/// The folders of a container's root filesystem, for an overlay mount.
#[derive(Clone, Debug)]
pub struct WritableLayer {
    /// The folder for what the container writes.
    pub upper: PathBuf,
    /// The work folder of overlayfs.
    pub work: PathBuf,
    /// The image's layers, the topmost first, as overlayfs requires. Never empty.
    pub lower: Vec<PathBuf>,
    /// The container's image.
    pub image: Arc<Image>,
    /// The images that are mounted in the container, in the order of the request.
    pub volumes: Vec<ImageVolume>,
}

/// The usage of a filesystem.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FsUsage {
    /// The mount point of the filesystem, or the folder on it.
    pub mountpoint: PathBuf,
    /// The used bytes. As in `du`, blocks are counted, not lengths.
    pub bytes: u64,
    /// The number of files and folders.
    pub inodes: u64,
    /// The time of the measurement, in nanoseconds since the epoch.
    pub at: i64,
}

/// The disk usage of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Images and their layers.
    pub image: FsUsage,
    /// The writable layers of containers.
    pub containers: FsUsage,
}
