//! The dependencies of a layer on the layers below, recorded while it is unpacked: folders that it does not
//! list, and hard links to files that it does not contain. Their number and the length of their names are
//! untrusted, so their memory is limited.

use std::collections::{BTreeMap, BTreeSet};

use super::path::TreePath;
use crate::error::Error;

/// The memory for one path in addition to its bytes: the node of a tree, and the allocator's overhead.
const OVERHEAD: u64 = 64;

/// The dependencies of one layer.
#[derive(Debug)]
pub(super) struct Dependencies<'a> {
    what: &'a str,
    limit: u64,
    bytes: u64,
    implicit: BTreeSet<TreePath>,
    links: BTreeMap<TreePath, TreePath>,
}

impl<'a> Dependencies<'a> {
    pub(super) fn new(what: &'a str, limit: u64) -> Self {
        // The root is implicit until the layer lists it.
        let implicit = BTreeSet::from([TreePath::default()]);
        Self { what, limit, bytes: 0, implicit, links: BTreeMap::new() }
    }

    /// Adds a folder that the layer needs but has not listed yet.
    pub(super) fn add_implicit(&mut self, path: TreePath) -> Result<(), Error> {
        self.charge(cost(&path))?;
        self.implicit.insert(path);
        Ok(())
    }

    /// Removes a folder that the layer lists after all.
    pub(super) fn mark_listed(&mut self, path: &TreePath) {
        if self.implicit.remove(path) {
            self.bytes = self.bytes.saturating_sub(cost(path));
        }
    }

    /// Adds a hard link to a file that this layer does not contain.
    pub(super) fn add_link(&mut self, path: TreePath, target: TreePath) -> Result<(), Error> {
        self.drop_link(&path);
        self.charge(cost(&path) + cost(&target))?;
        self.links.insert(path, target);
        Ok(())
    }

    /// Removes a hard link that was replaced by another entry.
    pub(super) fn drop_link(&mut self, path: &TreePath) {
        if let Some(target) = self.links.remove(path) {
            self.bytes = self.bytes.saturating_sub(cost(path) + cost(&target));
        }
    }

    /// Removes everything at and below a path.
    pub(super) fn forget(&mut self, path: &TreePath) {
        self.mark_listed(path);
        let below = |path: &TreePath| path.range_below();
        let folders: Vec<TreePath> = self.implicit.range(below(path)).cloned().collect();
        let links: Vec<TreePath> = self.links.range(below(path)).map(|(link, _)| link.clone()).collect();
        folders.iter().for_each(|path| self.mark_listed(path));
        links.iter().for_each(|path| self.drop_link(path));
    }

    pub(super) fn into_parts(self) -> (BTreeSet<TreePath>, BTreeMap<TreePath, TreePath>) {
        (self.implicit, self.links)
    }

    fn charge(&mut self, bytes: u64) -> Result<(), Error> {
        self.bytes += bytes;
        if self.bytes > self.limit {
            let why = format!(
                "dependencies on the layers below take more than {} bytes of memory: {} folders that the layer does not \
                 list, {} hard links to files that it does not contain",
                self.limit,
                self.implicit.len(),
                self.links.len()
            );
            return Err(Error::limit(self.what, why));
        }
        Ok(())
    }
}

fn cost(path: &TreePath) -> u64 {
    OVERHEAD + u64::try_from(path.as_bytes().len()).unwrap_or(u64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn path(name: &str) -> TreePath {
        TreePath::parse(name.as_bytes()).unwrap()
    }

    #[test]
    fn removed_notes_take_no_memory() {
        let mut dependencies = Dependencies::new("layer x", 1000);
        for _ in 0..100 {
            for name in ["a", "a/b", "a/b/c", "a.b", "ab"] {
                dependencies.add_implicit(path(name)).unwrap();
            }
            dependencies.add_link(path("a/l"), path("t")).unwrap();
            dependencies.add_link(path("a/l"), path("u")).unwrap();
            dependencies.add_link(path("al"), path("t")).unwrap();
            dependencies.forget(&path("a"));
            assert_eq!(dependencies.implicit, BTreeSet::from([path(""), path("a.b"), path("ab")]));
            assert_eq!(dependencies.links.keys().collect::<Vec<_>>(), [&path("al")]);
            dependencies.mark_listed(&path("a.b"));
            dependencies.mark_listed(&path("ab"));
            dependencies.drop_link(&path("al"));
            assert_eq!(dependencies.bytes, 0);
        }
    }

    #[test]
    fn exceeding_the_limit_is_an_error_with_figures() {
        let mut dependencies = Dependencies::new("layer x", 1 << 20);
        let long = "t/".repeat(1000);
        let full = (0..2000)
            .find_map(|number| dependencies.add_link(path(&format!("l{number}")), path(&long)).err());
        let error = full.unwrap();
        assert_eq!(error.kind(), ErrorKind::LimitExceeded);
        let text = error.to_string();
        assert!(
            text.starts_with("layer x: ")
                && text.contains("1048576 bytes")
                && text.contains("492 hard links"),
            "{text}"
        );
    }
}
