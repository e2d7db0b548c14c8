//! Mounts the root filesystems of containers.

use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};

use berth_image::WritableLayer;
use berth_runtime::rootfs;

use crate::error::CriError;

/// Mounts root filesystems. Unit tests replace it, because a mount needs root.
pub trait RootMounter: fmt::Debug + Send + Sync {
    /// Returns a detached mount of a writable layer on its image. In a user namespace, the owners of files are mapped.
    ///
    /// # Errors
    /// The kernel refuses the mount.
    fn mount(
        &self,
        layer: &WritableLayer,
        userns: Option<BorrowedFd<'_>>,
        label: Option<&str>,
    ) -> Result<OwnedFd, CriError>;
}

/// Mounts overlayfs.
#[derive(Clone, Copy, Debug)]
pub struct Overlay;

impl RootMounter for Overlay {
    fn mount(
        &self,
        layer: &WritableLayer,
        userns: Option<BorrowedFd<'_>>,
        label: Option<&str>,
    ) -> Result<OwnedFd, CriError> {
        Ok(rootfs::overlay(&layer.lower, Some(&layer.upper), Some(&layer.work), userns, label)?)
    }
}
