//! Hidden paths of a container. A mask is an empty file or folder of a filesystem that belongs to this container
//! alone. Changes that the container makes to a mask, such as to its mode, affect no other container.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::mount::UnmountFlags;

use super::mounts::present;
use crate::path::Root;
use crate::sys::mount::{self, FsContext};
use crate::sys::{self, Context};

/// The null device (Documentation/admin-guide/devices.txt).
pub(super) const NULL: (u32, u32) = (1, 3);

/// The folder on which the filesystem is attached. Every host has it.
const MOUNT_POINT: &str = "/sys";

/// The root, the file and the folder.
const INODES: &str = "3";

/// The filesystem with the masks. It is created outside a user namespace, where device nodes can be created and
/// opened (mount_namespaces(7), "Restrictions on mount namespaces"), and its clones are attached among the
/// container's mounts.
#[derive(Debug)]
pub(super) struct Masks {
    tree: OwnedFd,
}

impl Masks {
    /// Creates the filesystem. `label` is its SELinux label.
    ///
    /// # Errors
    /// A system call fails.
    pub(super) fn create(label: Option<&str>) -> sys::Result<Self> {
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

    /// Attaches the filesystem on a folder in the process's copy of the host's mounts, because only parts of an
    /// attached mount can be cloned (open_tree(2)). It disappears with the host's mounts. It must not be attached
    /// on the host's root itself: after the pivot it would be on top of that, and would be unmounted in its place.
    ///
    /// # Errors
    /// The caller is not permitted to.
    pub(super) fn attach(&self) -> sys::Result<()> {
        self.attach_at(MOUNT_POINT)
    }

    /// Attaches the filesystem on another folder, for a program that uses its files by their paths.
    ///
    /// # Errors
    /// The caller is not permitted to.
    pub(super) fn attach_at(&self, folder: &str) -> sys::Result<()> {
        mount::attach(self.tree.as_fd(), mount::place(folder)?.as_fd())
    }

    /// Unmounts the filesystem; its clones remain. The next reader of the host's files sees all of them.
    ///
    /// # Errors
    /// The caller is not permitted to.
    pub(super) fn detach(&self) -> sys::Result<()> {
        rustix::mount::unmount(MOUNT_POINT, UnmountFlags::DETACH).on("umount2", MOUNT_POINT)
    }

    /// Hides a path. A path that does not exist is skipped.
    ///
    /// # Errors
    /// The path cannot be resolved, or the mask cannot be mounted.
    pub(super) fn hide(&self, root: &Root, path: &str) -> sys::Result<()> {
        let Some(place) = present(root, path)? else { return Ok(()) };
        let stat = rustix::fs::fstat(&place).on("fstat", path)?;
        let read_only = mount::ATTR_RDONLY | mount::ATTR_NOSUID | mount::ATTR_NOEXEC;
        // The mask for a file is a device node, which cannot be opened on a mount with the nodev attribute.
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
