//! Device nodes in a container: created, or in a pod with a user namespace, which cannot create any (mknod(2)), the host's
//! nodes attached by bind mounts.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode};
use rustix::io::Errno;

use crate::path::Root;
use crate::plan::{DeviceKind, DeviceNode};
use crate::sys::{self, Context, mount};

/// Opens the host's devices that are the same as `nodes`.
pub(super) fn open_all(nodes: &[DeviceNode]) -> sys::Result<Vec<OwnedFd>> {
    nodes.iter().map(open).collect()
}

fn open(node: &DeviceNode) -> sys::Result<OwnedFd> {
    let path = match &node.source {
        Some(source) => source.clone(),
        None => format!("/dev/{}", node.path.trim_start_matches("/dev/").trim_start_matches('/')),
    };
    let tree = mount::clone_path(&path, false)?;
    let stat = rustix::fs::fstat(&tree).on("fstat", &path)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let same = match node.kind {
        DeviceKind::Char => kind == FileType::CharacterDevice,
        DeviceKind::Block => kind == FileType::BlockDevice,
        DeviceKind::Fifo => kind == FileType::Fifo,
    };
    let device = rustix::fs::makedev(node.major, node.minor);
    if !same || (node.kind != DeviceKind::Fifo && stat.st_rdev != device) {
        return Err(Errno::NODEV).on("open_tree", format_args!("{path}, which is another device"));
    }
    Ok(tree)
}

/// Attaches devices at their paths below `folder`.
pub(super) fn attach_all(
    root: &Root,
    folder: &str,
    nodes: &[DeviceNode],
    trees: &[OwnedFd],
) -> sys::Result<()> {
    for (node, tree) in nodes.iter().zip(trees) {
        let place = root.make_file(&format!("{folder}/{}", node.path.trim_start_matches('/')))?;
        mount::attach(tree.as_fd(), place.as_fd())?;
    }
    Ok(())
}

/// Creates a device node at a path. An existing node is replaced; any other file is an error.
pub(super) fn create(root: &Root, path: &str, node: &DeviceNode) -> sys::Result<()> {
    let kind = match node.kind {
        DeviceKind::Char => FileType::CharacterDevice,
        DeviceKind::Block => FileType::BlockDevice,
        DeviceKind::Fifo => FileType::Fifo,
    };
    let (folder, name) = root.make_parent(path)?;
    let mode = Mode::from_raw_mode(node.mode & 0o7777);
    let device = rustix::fs::makedev(node.major, node.minor);
    match rustix::fs::mknodat(&folder, name, kind, mode, device) {
        Err(Errno::EXIST) => {
            remove(&folder, name, path)?;
            rustix::fs::mknodat(&folder, name, kind, mode, device).on("mknod", path)?;
        }
        result => result.on("mknod", path)?,
    }
    let owner = (rustix::fs::Uid::from_raw(node.uid), rustix::fs::Gid::from_raw(node.gid));
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(&folder, name, Some(owner.0), Some(owner.1), flags).on("chown", path)
}

/// Removes a device node or a named pipe. Anything else is a file of the image or of a volume, and remains.
fn remove(folder: &OwnedFd, name: &str, path: &str) -> sys::Result<()> {
    let stat = rustix::fs::statat(folder, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).on("stat", path)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo => {
            rustix::fs::unlinkat(folder, name, rustix::fs::AtFlags::empty()).on("unlink", path)
        }
        _ => Err(Errno::EXIST).on("mknod", format_args!("{path}, which exists and is not a device")),
    }
}
