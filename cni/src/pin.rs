//! Pins a network namespace to a path, because external plugins address namespaces by path. This is the only mount in
//! the host's mount namespace.
//!
//! The file below the mount contains the folder of the network's state, so that pins of different daemons on one host can
//! be distinguished when their records are lost.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::OpenTreeFlags;

use crate::{Context, Result};

/// The folder where tools look for network namespaces (ip-netns(8)).
const FOLDER: &str = "/run/netns";

/// The prefix of the names of pins.
const PREFIX: &str = "berth-";

/// The path where a pod's namespace is pinned.
pub(crate) fn path_of(pod: &str) -> PathBuf {
    Path::new(FOLDER).join(format!("{PREFIX}{pod}"))
}

/// Pins a namespace for the network with this folder of state.
pub(crate) fn create(netns: BorrowedFd<'_>, path: &Path, state_dir: &Path) -> Result<()> {
    fs::create_dir_all(FOLDER).doing(format!("create {FOLDER}"))?;
    fs::write(path, mark_of(state_dir)).doing(format!("create {}", path.display()))?;
    let source = format!("/proc/self/fd/{}", netns.as_raw_fd());
    rustix::mount::mount_bind(source.as_str(), path).doing(format!("pin {}", path.display()))
}

/// The content of the file below a pin.
fn mark_of(state_dir: &Path) -> String {
    format!("berth {}\n", state_dir.display())
}

/// Removes the pin, if there is one.
pub(crate) fn unpin(path: &Path) -> Result<()> {
    match rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH) {
        // Not a mount, or removed by a reboot.
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        unmounted => unmounted.doing(format!("unpin {}", path.display()))?,
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.doing(format!("remove {}", path.display())),
    }
}

/// A pinned namespace.
#[derive(Debug)]
pub(crate) struct Pin {
    pub(crate) pod: String,
    pub(crate) path: PathBuf,
    /// Whether the file below the mount has the mark. Without a mark, an older version or another daemon has pinned it.
    pub(crate) certain: bool,
}

/// Returns the pins that the network with this folder of state may have created.
///
/// # Errors
/// The folder of pins exists and cannot be read.
pub(crate) fn pins(state_dir: &Path) -> io::Result<Vec<Pin>> {
    let mut pins = Vec::new();
    let entries = match fs::read_dir(FOLDER) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(pins),
        entries => entries?,
    };
    let mut below: Option<OwnedFd> = None;
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let Some(pod) = name.strip_prefix(PREFIX) else { continue };
        if below.is_none() {
            below = Some(folder_without_mounts()?);
        }
        let content = below.as_ref().and_then(|folder| content_of(folder, &name).ok()).unwrap_or_default();
        let certain = content == mark_of(state_dir);
        // The mark of another daemon.
        if certain || content.is_empty() {
            pins.push(Pin { pod: pod.to_owned(), path: Path::new(FOLDER).join(&name), certain });
        }
    }
    pins.sort_by(|left, right| left.path.cmp(&right.path));
    Ok(pins)
}

/// Opens the folder of pins without the mounts in it (open_tree(2), a copy that is not recursive).
fn folder_without_mounts() -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(rustix::mount::open_tree(CWD, FOLDER, flags)?)
}

/// The longest path (limits.h, `PATH_MAX`), and the rest of the mark.
const LONGEST: u64 = 4096 + 16;

fn content_of(folder: &OwnedFd, name: &str) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(folder, name, flags, Mode::empty())?);
    let mut content = String::new();
    file.take(LONGEST).read_to_string(&mut content)?;
    Ok(content)
}
