//! Pins a network namespace to a path, because external plugins address namespaces by path. This is the only mount in
//! the host's mount namespace.

use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use crate::{Context, Result};

/// The folder where tools look for network namespaces (ip-netns(8)).
const FOLDER: &str = "/run/netns";

/// The path where a pod's namespace is pinned.
pub(crate) fn path_of(pod: &str) -> PathBuf {
    Path::new(FOLDER).join(format!("berth-{pod}"))
}

/// Pins a namespace.
pub(crate) fn pin(netns: BorrowedFd<'_>, path: &Path) -> Result<()> {
    fs::create_dir_all(FOLDER).doing(format!("create {FOLDER}"))?;
    fs::write(path, "").doing(format!("create {}", path.display()))?;
    let source = format!("/proc/self/fd/{}", netns.as_raw_fd());
    rustix::mount::mount_bind(source.as_str(), path).doing(format!("pin {}", path.display()))
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
