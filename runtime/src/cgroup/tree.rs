//! The folders of a cgroup and of those below it, in all hierarchies that are mounted on this host, for programs that
//! name the parent cgroup of pods: they remove it, and look for what is left in it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::CgroupPath;
use super::hierarchy;

/// Returns the folders of a cgroup and of those below it, in every hierarchy, the deepest first. Cgroups that are being
/// removed are skipped.
///
/// # Errors
/// The mounts of this host cannot be read.
pub fn folders(path: &CgroupPath) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for mount in hierarchy::mounts()? {
        let folder = mount.join(path.relative());
        if folder.is_dir() {
            collect(&folder, &mut found);
        }
    }
    Ok(found)
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    // Reading a cgroup that is being removed fails with ENODEV.
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), found);
        }
    }
    found.push(folder.to_owned());
}

/// Removes a cgroup and those below it, in every hierarchy. Returns the folders that could not be removed, with the
/// reason: processes are in them.
///
/// # Errors
/// The mounts of this host cannot be read.
pub fn remove(path: &CgroupPath) -> io::Result<Vec<(PathBuf, io::Error)>> {
    let removed = folders(path)?.into_iter().map(|folder| match fs::remove_dir(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Some((folder, error)),
        _ => None,
    });
    Ok(removed.flatten().collect())
}
