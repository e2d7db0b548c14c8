//! Finds cgroups by their last path component, or by the mark of a daemon. If an object's record is lost, its parent cgroup
//! is not known.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::mark::Mark;
use super::{CgroupPath, Hierarchies};

/// Returns the cgroups of this host that have one of these names as their last path component, in any hierarchy.
/// Folders that cannot be read, and cgroups with the mark of another daemon than `own`, are skipped.
#[must_use]
pub fn find(hierarchies: &Hierarchies, names: &[String], own: Option<&Mark>) -> Vec<CgroupPath> {
    let mut found = BTreeSet::new();
    for hierarchy in hierarchies.used() {
        let has_name = |folder: &Path| names.iter().any(|name| folder.ends_with(name));
        found.extend(paths_of(&hierarchy.mount, has_name));
    }
    let is_of_another = |path: &String| {
        let mut folders = hierarchies.used().map(|hierarchy| hierarchy.mount.join(path));
        folders.any(|folder| Mark::on(&folder).is_some_and(|mark| own != Some(&mark)))
    };
    found.retain(|path| !is_of_another(path));
    found.iter().filter_map(|path| CgroupPath::from_recorded(path).ok()).collect()
}

/// Returns the cgroups of this host that have this mark, in any hierarchy. Those below a marked one are not listed.
#[must_use]
pub fn marked(hierarchies: &Hierarchies, mark: &Mark) -> Vec<CgroupPath> {
    let mut found = BTreeSet::new();
    for hierarchy in hierarchies.used() {
        found.extend(paths_of(&hierarchy.mount, |folder| mark.is_on(folder)));
    }
    found.iter().filter_map(|path| CgroupPath::from_recorded(path).ok()).collect()
}

/// Returns the paths of the topmost folders that fulfil the condition.
fn paths_of(mount: &Path, condition: impl Fn(&Path) -> bool) -> Vec<String> {
    let folders = folders_of(mount, condition);
    let path = |folder: &PathBuf| folder.strip_prefix(mount).ok()?.to_str().map(str::to_owned);
    folders.iter().filter_map(path).collect()
}

fn folders_of(mount: &Path, condition: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![mount.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let path = entry.path();
            match condition(&path) {
                true => found.push(path),
                false => pending.push(path),
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_found_by_its_last_component_at_any_depth() {
        let root = tempfile::tempdir().unwrap();
        for folder in ["a/b/pod/below", "pod", "a/pod.x", "c"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        fs::write(root.path().join("c/pod"), "a file").unwrap();
        let mut found = folders_of(root.path(), |folder| folder.ends_with("pod"));
        found.sort();
        assert_eq!(found, [root.path().join("a/b/pod"), root.path().join("pod")]);
    }
}
