//! Images: references, the registry client, the store of unpacked layers, and containers' writable layers.
//!
//! An image is pulled ([`ImageStore::pull`]) or loaded from an archive ([`ImageStore::load`]). Each layer is
//! streamed from the socket through digest check and decompression into its own folder, independent of the
//! other layers. The root filesystem of a container is an overlay of these folders. The caller mounts it.

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
