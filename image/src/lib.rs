//! Images: references, the registry client, the store of unpacked layers, and containers' writable layers.
//!
//! An image is pulled ([`ImageStore::pull`]) or loaded from an archive ([`ImageStore::load`]). Each layer is
//! streamed from the socket through digest check and decompression into its own folder, independent of the
//! other layers. The root filesystem of a container is an overlay of these folders. The caller mounts it.
//!
//! * [`admission`]: decides whether a container may use an image that is in the store
//! * [`artifact`]: manifests that are not images
//! * [`auth_file`]: credentials that are configured on the node
//! * [`bounded`]: bounded lists in untrusted JSON documents
//! * [`config`]: the config of an image
//! * [`credentials`]: credentials for a registry, from a request or a configuration file
//! * [`descriptor`]: references to content, in manifests and indexes
//! * [`digest`]: digests of content
//! * [`downloads`]: limits on concurrent downloads
//! * [`error`]: the errors of this crate, and their kinds
//! * [`explain`]: explains a pull without pulling
//! * [`image`]: the public types for images and for the storage that containers use
//! * [`import`]: the import folder
//! * [`load`]: OCI layouts, OCI archives and docker-archives
//! * [`manifest`]: parses manifests and indexes
//! * [`media_types`]: the media types of manifests, configs and layers
//! * [`mod@mistakes`]: finds all mistakes in configuration files, before a pull needs the files
//! * [`platform`]: which images of an index run on this host
//! * [`policy`]: the policy that decides which images may be used (containers-policy.json(5))
//! * [`mod@printable`]: untrusted text in a form that is safe to print
//! * [`progress`]: the progress of pulls, layer by layer
//! * [`pull`]: pulls an image
//! * [`mod@reference`]: image references, normalised as Docker does
//! * [`registry`]: the client for OCI registries
//! * [`save`]: saves images to an archive that berth, docker and podman load
//! * [`store`]: the images and layers on this node
//! * [`transfer`]: the transfer of one layer, or of one file of an artifact, from a registry into the store
//! * [`unpack`]: unpacks the bytes of a layer into a folder that overlayfs can stack
//! * [`writable_diff`]: the difference between a writable layer and its image
//! * [`step`]: the steps of a pull at which a test stops the daemon

mod admission;
mod artifact;
mod auth_file;
mod bounded;
mod config;
mod credentials;
mod descriptor;
mod digest;
mod downloads;
mod error;
mod explain;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod image;
mod import;
mod load;
mod manifest;
mod media_types;
mod mistakes;
mod platform;
mod policy;
mod printable;
mod progress;
mod pull;
mod reference;
mod registry;
mod save;
mod step;
mod store;
mod transfer;
mod unpack;
mod writable_diff;

pub use config::ImageConfig;
pub use credentials::Credentials;
pub use digest::{Algorithm, Digest};
pub use error::{Error, ErrorKind};
pub use explain::{Explanation, Server};
pub use image::{FsUsage, Image, ImageVolume, Usage, WritableLayer};
pub use mistakes::mistakes;
pub use platform::Platform;
pub use printable::{Printable, printable, printable_json};
pub use progress::{LayerProgress, Stage, Transferred};
pub use reference::Reference;
pub use registry::{Proxies, Timeouts};
pub use step::PullStep;
pub use store::{
    Checked, Hold, ImageStore, Incomplete, Options, ProjectQuotas, Unowned, UnownedKind, Verdict, Verified,
    check_closed, disk_usage,
};
pub use unpack::{Limits, copy_files, unpack_files};
pub use writable_diff::{IdRange, WritableDiff};
