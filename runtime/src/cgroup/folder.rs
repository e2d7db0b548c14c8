//! The folder of a cgroup in one hierarchy.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::CgroupError;
use super::hierarchy::Hierarchy;

/// The time limit for a cgroup to stay busy after everything in it has ended. The kernel frees it slightly later.
const BUSY: Duration = Duration::from_secs(5);

/// A cgroup's folder in one hierarchy.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    pub(super) hierarchy: Arc<Hierarchy>,
    pub(super) path: PathBuf,
}

impl Folder {
    /// Returns the folders from the one below the mount point to this one.
    pub(super) fn with_parents(&self) -> Vec<&Path> {
        let below =
            |folder: &&Path| *folder != self.hierarchy.mount && folder.starts_with(&self.hierarchy.mount);
        let mut folders: Vec<&Path> = self.path.ancestors().take_while(below).collect();
        folders.reverse();
        folders
    }
}

/// Creates a folder, if it does not exist.
pub(super) fn make(path: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        result => {
            result.map_err(|source| CgroupError::File { action: "create", path: path.to_owned(), source })
        }
    }
}

/// Removes a folder and those below it, the deepest first. A cgroup stays busy for a moment after its last process
/// has ended.
pub(super) fn remove(path: &Path) -> Result<(), CgroupError> {
    // Most have no folders below, and are not busy.
    if fs::remove_dir(path).is_ok() {
        return Ok(());
    }
    remove_until(path, Instant::now() + BUSY)
}

fn remove_until(path: &Path, until: Instant) -> Result<(), CgroupError> {
    let Ok(entries) = fs::read_dir(path) else { return Ok(()) };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_until(&entry.path(), until)?;
        }
    }
    loop {
        match fs::remove_dir(path) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(CgroupError::File { action: "remove", path: path.to_owned(), source: error });
            }
            _ => return Ok(()),
        }
    }
}

/// Removes a folder if it has no processes and no folders below. Else it is unchanged.
pub(super) fn remove_if_unused(path: &Path) -> Result<(), CgroupError> {
    use ErrorKind::{DirectoryNotEmpty, NotFound, ResourceBusy};
    match fs::remove_dir(path).map_err(|error| (error.kind(), error)) {
        Ok(()) | Err((NotFound | ResourceBusy | DirectoryNotEmpty, _)) => Ok(()),
        Err((_, source)) => Err(CgroupError::File { action: "remove", path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_start_below_the_mount_point() {
        let folder = |path: &str| Folder {
            hierarchy: Arc::new(Hierarchy { mount: "/sys/fs/cgroup/memory".into(), controllers: Vec::new() }),
            path: path.into(),
        };
        let parents =
            |path| folder(path).with_parents().iter().map(|p| p.display().to_string()).collect::<Vec<_>>();
        let expected = ["/sys/fs/cgroup/memory/a", "/sys/fs/cgroup/memory/a/b"];
        assert_eq!(parents("/sys/fs/cgroup/memory/a/b"), expected);
        assert!(parents("/sys/fs/cgroup/memory").is_empty());
    }
}
