//! Finds cgroups by their last path component. If an object's record is lost, its parent cgroup is not known.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::{CgroupPath, Hierarchies};

/// Returns the cgroups of this host that have one of these names as their last path component, in any hierarchy.
/// Folders that cannot be read are skipped.
#[must_use]
pub fn find(hierarchies: &Hierarchies, names: &[String]) -> Vec<CgroupPath> {
    let mut found = BTreeSet::new();
    for hierarchy in hierarchies.used() {
        for folder in folders_of(&hierarchy.mount, names) {
            let path = folder.strip_prefix(&hierarchy.mount).ok().and_then(Path::to_str);
            found.extend(path.map(str::to_owned));
        }
    }
    found.iter().filter_map(|path| CgroupPath::from_recorded(path).ok()).collect()
}

fn folders_of(mount: &Path, names: &[String]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![mount.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            match names.iter().any(|name| *entry.file_name() == **name) {
                true => found.push(entry.path()),
                false => pending.push(entry.path()),
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
        for folder in ["a/b/wanted/below", "wanted", "a/wanted.x", "c"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        fs::write(root.path().join("c/wanted"), "a file").unwrap();
        let mut found = folders_of(root.path(), &["wanted".to_owned()]);
        found.sort();
        assert_eq!(found, [root.path().join("a/b/wanted"), root.path().join("wanted")]);
    }
}
