//! Mounts by descriptor. A filesystem or a clone of a tree is a detached mount that gets its attributes before it
//! is attached (fsopen(2), open_tree(2), mount_setattr(2), move_mount(2)).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::CWD;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use super::{Context, Error, Result, checked};

/// The mount is read-only (`MOUNT_ATTR_RDONLY`, mount_setattr(2)).
pub const ATTR_RDONLY: u64 = 0x1;
/// Set-user-ID bits and file capabilities have no effect (`MOUNT_ATTR_NOSUID`).
pub const ATTR_NOSUID: u64 = 0x2;
/// Device nodes cannot be opened (`MOUNT_ATTR_NODEV`).
pub const ATTR_NODEV: u64 = 0x4;
/// Programs cannot be executed (`MOUNT_ATTR_NOEXEC`).
pub const ATTR_NOEXEC: u64 = 0x8;
/// `MOUNT_ATTR__ATIME`: the mask of the three modes for access times.
pub const ATTR_ATIME_MASK: u64 = 0x70;
/// Access times are not updated (`MOUNT_ATTR_NOATIME`).
pub const ATTR_NOATIME: u64 = 0x10;
/// Access times are updated at every access (`MOUNT_ATTR_STRICTATIME`).
pub const ATTR_STRICTATIME: u64 = 0x20;
/// Access times of folders are not updated (`MOUNT_ATTR_NODIRATIME`).
pub const ATTR_NODIRATIME: u64 = 0x80;
/// Symbolic links are not followed (`MOUNT_ATTR_NOSYMFOLLOW`).
pub const ATTR_NOSYMFOLLOW: u64 = 0x20_0000;

/// As private, and the mount cannot be bind mounted (`MS_UNBINDABLE`, mount_namespaces(7)).
pub const UNBINDABLE: u64 = 1 << 17;
/// Mounts are neither received nor sent (`MS_PRIVATE`).
pub const PRIVATE: u64 = 1 << 18;
/// Mounts are received from the peer group, but not sent (`MS_SLAVE`).
pub const SLAVE: u64 = 1 << 19;
/// Mounts are received from the peer group and sent to it (`MS_SHARED`).
pub const SHARED: u64 = 1 << 20;

/// A filesystem that is being configured (fsopen(2)).
#[derive(Debug)]
pub struct FsContext {
    fd: OwnedFd,
    fstype: String,
}

impl FsContext {
    /// Opens a filesystem type.
    ///
    /// # Errors
    /// The kernel does not support the type.
    pub fn open(fstype: &str) -> Result<Self> {
        let fd = rustix::mount::fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC).on("fsopen", fstype)?;
        Ok(Self { fd, fstype: fstype.to_owned() })
    }

    /// Sets an option: `key=value`, or a flag.
    ///
    /// # Errors
    /// The filesystem rejects the option. The kernel's message is part of the error.
    pub fn set(&self, key: &str, value: Option<&str>) -> Result<()> {
        match value {
            Some(value) => rustix::mount::fsconfig_set_string(&self.fd, key, value),
            None => rustix::mount::fsconfig_set_flag(&self.fd, key),
        }
        .map_err(|errno| self.explain("fsconfig", &format!("{key}={}", value.unwrap_or_default()), errno))
    }

    /// Creates the filesystem and a detached mount of it.
    ///
    /// # Errors
    /// The filesystem rejects its options. The kernel's message is part of the error.
    pub fn mount(self, attributes: u64) -> Result<OwnedFd> {
        rustix::mount::fsconfig_create(&self.fd).map_err(|e| self.explain("fsconfig", "create", e))?;
        let low = u32::try_from(attributes).unwrap_or(0);
        rustix::mount::fsmount(&self.fd, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::from_bits_retain(low))
            .map_err(|errno| self.explain("fsmount", "", errno))
    }

    /// Builds an error with the filesystem's message, which is read from the context (fsopen(2), "Message
    /// retrieval interface").
    fn explain(&self, call: &'static str, what: &str, errno: rustix::io::Errno) -> Error {
        let mut message = [0_u8; 256];
        let read = rustix::io::read(&self.fd, &mut message[..]).unwrap_or(0);
        let text = String::from_utf8_lossy(message.get(..read).unwrap_or_default()).trim().to_owned();
        let mut object = self.fstype.clone();
        for part in [what, &text] {
            if !part.is_empty() {
                object.push(' ');
                object.push_str(part);
            }
        }
        Error { call, object, errno }
    }
}

/// Clones the tree at a path of the caller's mount namespace. Returns a detached mount.
///
/// # Errors
/// The path cannot be opened, or its mount cannot be cloned (unbindable).
pub fn clone_path(path: &str, recursive: bool) -> Result<OwnedFd> {
    rustix::mount::open_tree(CWD, path, clone_flags(recursive)).on("open_tree", path)
}

/// Clones the tree at a descriptor, if its mount is in the caller's mount namespace. Returns a detached mount.
///
/// # Errors
/// The mount cannot be cloned.
pub fn clone_descriptor(fd: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd> {
    rustix::mount::open_tree(fd, "", clone_flags(recursive) | OpenTreeFlags::AT_EMPTY_PATH)
        .on("open_tree", "")
}

fn clone_flags(recursive: bool) -> OpenTreeFlags {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive { flags | OpenTreeFlags::AT_RECURSIVE } else { flags }
}

/// Attaches a detached mount at the location that `target` is a descriptor of.
///
/// # Errors
/// The kinds differ (a file on a folder), or the target is not in the caller's mount namespace.
pub fn attach(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree, "", target, "", flags).on("move_mount", "")
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// The mount maps owners through a user namespace (`MOUNT_ATTR_IDMAP`).
const ATTR_IDMAP: u64 = 0x10_0000;

/// Maps the ids of a detached mount: inside the user namespace, its files have the owners that they have on the
/// disk (mount_setattr(2), "ID-mapped mounts").
///
/// # Errors
/// The filesystem does not support it, or the caller lacks the privilege.
pub fn idmap(tree: BorrowedFd<'_>, userns: BorrowedFd<'_>, recursive: bool) -> Result<()> {
    let userns_fd = u64::try_from(userns.as_raw_fd()).unwrap_or(0);
    let attr = MountAttr { set: ATTR_IDMAP, clear: 0, propagation: 0, userns_fd };
    setattr(tree, &attr, recursive).on("mount_setattr", "MOUNT_ATTR_IDMAP")
}

/// Changes the attributes and the propagation of the mount at a descriptor (mount_setattr(2)).
///
/// # Errors
/// The caller lacks the privilege (a locked flag), or the kernel is older than 5.12.
pub fn set_attributes(
    tree: BorrowedFd<'_>,
    set: u64,
    clear: u64,
    propagation: u64,
    recursive: bool,
) -> Result<()> {
    let attr = MountAttr { set, clear, propagation, userns_fd: 0 };
    setattr(tree, &attr, recursive).on("mount_setattr", "")
}

fn setattr(tree: BorrowedFd<'_>, attr: &MountAttr, recursive: bool) -> rustix::io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, and `attr` is a live struct of the given size. The kernel writes to
    // neither.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    checked(result).map(drop)
}

/// Makes the directory that `new_root` is a descriptor of the root of the caller's mount namespace, and detaches
/// the old root with everything below it (pivot_root(2), "pivot_root(\".\", \".\")").
///
/// # Errors
/// The directory is not a mount, or the caller lacks the privilege. `EBUSY` if something is still mounted on the
/// new root. That root must not be used then: a process in it could reach the other mount by `/..` and by
/// setns(2).
pub fn pivot_to(new_root: BorrowedFd<'_>) -> Result<()> {
    rustix::process::fchdir(new_root).on("fchdir", "the new root")?;
    rustix::process::pivot_root(".", ".").on("pivot_root", "")?;
    // The old root is now mounted on top of the new one, and the working directory is in the new one below it.
    rustix::mount::unmount(".", UnmountFlags::DETACH).on("umount2", "the old root")?;
    rustix::process::chdir("/").on("chdir", "/")?;
    if mount_id("/")? != mount_id("/..")? {
        return Err(rustix::io::Errno::BUSY).on("pivot_root", "the new root, on which something is mounted");
    }
    Ok(())
}

/// Returns the id of the mount at a path (statx(2), `STATX_MNT_ID`).
fn mount_id(path: &str) -> Result<u64> {
    use rustix::fs::{AtFlags, StatxFlags};
    let stat = rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID).on("statx", path)?;
    Ok(stat.stx_mnt_id)
}

/// Opens a path as a location only (`O_PATH`).
///
/// # Errors
/// The path cannot be opened.
pub fn place(path: &str) -> Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).on("open", path)
}

/// Opens the directory of `fd` again. If a mount was attached on it in the meantime, the result is the root of
/// that mount.
///
/// # Errors
/// The descriptor is not a directory.
pub fn same_place(fd: impl AsFd) -> Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    rustix::fs::openat(fd, ".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .on("open", ".")
}
