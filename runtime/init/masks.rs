//! Hidden paths of a container. A mask is an empty file or an empty folder of a filesystem that belongs to the container
//! alone: what the container does to it, were it a change of its mode, nobody else sees.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::mount::UnmountFlags;

use super::mounts::present;
use crate::path::Root;
use crate::sys::mount::{self, FsContext};
use crate::sys::{self, Context};

/// The null device (Documentation/admin-guide/devices.txt).
pub(super) const NULL: (u32, u32) = (1, 3);

/// A folder that every host has.
const PLACE: &str = "/sys";

/// Root, file and folder.
const INODES: &str = "3";

/// A filesystem with what hides paths. It is made outside a user namespace, where device nodes can be made and opened
/// (mount_namespaces(7), "Restrictions on mount namespaces"), and attached inside the container's mounts.
#[derive(Debug)]
pub(super) struct Masks {
    tree: OwnedFd,
}

impl Masks {
    /// Makes the filesystem; `label` is for SELinux.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn make(label: Option<&str>) -> sys::Result<Self> {
        let context = FsContext::open("tmpfs")?;
        if let Some(label) = label {
            context.set("context", Some(label))?;
        }
        context.set("source", Some("masks"))?;
        context.set("mode", Some("755"))?;
        context.set("nr_inodes", Some(INODES))?;
        context.set("size", Some("4k"))?;
        let tree = context.mount(mount::ATTR_NOSUID | mount::ATTR_NOEXEC)?;
        let mode = Mode::from_raw_mode(0o666);
        let device = rustix::fs::makedev(NULL.0, NULL.1);
        rustix::fs::mknodat(&tree, "file", FileType::CharacterDevice, mode, device).on("mknod", "a mask")?;
        rustix::fs::mkdirat(&tree, "folder", Mode::from_raw_mode(0o555)).on("mkdir", "a mask")?;
        Ok(Self { tree })
    }

    /// Attaches the filesystem in a folder of the host, in whose mounts this process still is: only parts of an attached
    /// mount can be cloned (open_tree(2)). It goes with the host's mounts. It must not be on the host's root itself: after
    /// the pivot it would be on top of that, and be taken off in its stead.
    ///
    /// # Errors
    /// The caller may not.
    pub(super) fn attach(&self) -> sys::Result<()> {
        mount::attach(self.tree.as_fd(), mount::place(PLACE)?.as_fd())
    }

    /// Takes the filesystem off again, and leaves its clones: whoever looks at the host's files next sees all of them.
    ///
    /// # Errors
    /// The caller may not.
    pub(super) fn detach(&self) -> sys::Result<()> {
        rustix::mount::unmount(PLACE, UnmountFlags::DETACH).on("umount2", PLACE)
    }

    /// Hides a path; one that is not there needs no hiding.
    ///
    /// # Errors
    /// The path cannot be resolved, or the mask not be mounted.
    pub(super) fn hide(&self, root: &Root, path: &str) -> sys::Result<()> {
        let Some(place) = present(root, path)? else { return Ok(()) };
        let stat = rustix::fs::fstat(&place).on("fstat", path)?;
        let read_only = mount::ATTR_RDONLY | mount::ATTR_NOSUID | mount::ATTR_NOEXEC;
        // A mask for a file is a device node, which could not be opened on a mount without devices.
        let (name, attributes) = match FileType::from_raw_mode(stat.st_mode).is_dir() {
            true => ("folder", read_only | mount::ATTR_NODEV),
            false => ("file", read_only),
        };
        let mask = rustix::fs::openat(&self.tree, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let clone = mount::clone_descriptor(mask.on("open", "a mask")?.as_fd(), false)?;
        mount::set_attributes(clone.as_fd(), attributes, 0, 0, false)?;
        mount::attach(clone.as_fd(), place.as_fd())
    }
}
