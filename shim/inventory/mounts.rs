//! Mounts in the folders of pods, containers and images. berth makes none in the host's mount namespace; an older or another
//! runtime, or a program that an operator has started there, may have.

use std::fs;
use std::path::{Path, PathBuf};

use super::{InventoryError, Object, ObjectKind, Owner, Scope};
use crate::ids::ContainerId;

/// Returns the mounts in the folders of pods, containers and layers.
///
/// # Errors
/// The mounts of this process's namespace cannot be read.
pub fn objects(scope: &Scope) -> Result<Vec<Object>, InventoryError> {
    let image = scope.config.root.join("image");
    let folders = [
        scope.folders.pods(),
        scope.folders.containers(),
        scope.folders.pods_state(),
        image.join("containers"),
        image.join("layers"),
        image.join("tmp"),
    ];
    // The kernel shows paths without symbolic links.
    let folders: Vec<PathBuf> = folders.iter().filter_map(|folder| folder.canonicalize().ok()).collect();
    let mounts = mount_points().map_err(InventoryError::host("read the mounts"))?;
    let inside = |point: &PathBuf| folders.iter().any(|folder| point != folder && point.starts_with(folder));
    let mut objects: Vec<_> = mounts
        .into_iter()
        .filter(inside)
        .map(|point| Object::at(ObjectKind::Mount, owner_of(&point), point))
        .collect();
    // The last mount is removed first.
    objects.reverse();
    Ok(objects)
}

/// Returns the owner of a path below a folder that is named by an id.
fn owner_of(point: &Path) -> Owner {
    let names = point.iter().filter_map(|name| name.to_str()).map(str::to_owned);
    let mut ids = names.filter_map(|name| ContainerId::try_from(name).ok());
    ids.next().map_or(Owner::Daemon, |id| Owner::Either(id.into()))
}

/// Returns the mount points of this process's namespace, in the order of their mounts (proc(5), `/proc/pid/mountinfo`).
///
/// # Errors
/// procfs cannot be read.
pub fn mount_points() -> std::io::Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let point = |line: &str| Some(PathBuf::from(unescaped(line.split(' ').nth(4)?)));
    Ok(text.lines().filter_map(point).collect())
}

/// Replaces the escapes of proc_pid_mountinfo(5): space, tab, newline and backslash as octal numbers.
fn unescaped(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (escape, character)| text.replace(escape, character))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read() {
        assert!(mount_points().unwrap().contains(&PathBuf::from("/proc")));
        assert_eq!(unescaped("/a\\040b\\134c"), "/a b\\c");
    }

    #[test]
    fn the_owner_is_the_id_in_the_path() {
        let id = "0f".repeat(32);
        assert_eq!(owner_of(Path::new(&format!("/x/{id}/upper"))), Owner::Either(id));
        assert_eq!(owner_of(Path::new("/x/layers/sha256-1")), Owner::Daemon);
    }
}
