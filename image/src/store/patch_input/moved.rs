//! The folders of a layer that are links in the layers below.

use std::collections::BTreeMap;

use super::PatchInput;
use crate::error::Error;
use crate::unpack::TreePath;

/// The memory for a path in addition to its bytes.
const OVERHEAD: usize = 64;

/// The folders of the layer that are links in the layers below, with the targets of the links.
pub(super) struct MovedFolders {
    folders: BTreeMap<TreePath, TreePath>,
    /// The bytes of memory that are left for them.
    memory_left: usize,
}

impl MovedFolders {
    /// Their paths may use `limit` bytes of memory.
    pub(super) fn with_limit(limit: usize) -> Self {
        Self { folders: BTreeMap::new(), memory_left: limit }
    }

    pub(super) fn add(
        &mut self,
        input: &PatchInput<'_>,
        path: &TreePath,
        real: TreePath,
    ) -> Result<(), Error> {
        let cost = path.as_bytes().len() + real.as_bytes().len() + 2 * OVERHEAD;
        self.memory_left = self.memory_left.checked_sub(cost).ok_or_else(|| {
            let why = format!(
                "{} folders that are links in the layers below take more than {} bytes of memory",
                self.folders.len() + 1,
                input.limit
            );
            Error::limit(input.what, why)
        })?;
        self.folders.insert(path.clone(), real);
        Ok(())
    }

    /// Returns the moved folder above a path, and its target.
    pub(super) fn above(&self, path: &TreePath) -> Option<(TreePath, &TreePath)> {
        let mut folder = path.split().map(|(folder, _)| folder);
        while let Some(above) = folder {
            if let Some(real) = self.folders.get(&above) {
                return Some((above, real));
            }
            folder = above.split().map(|(folder, _)| folder);
        }
        None
    }

    /// Returns the path after the folders that are links were moved.
    pub(super) fn relocate(&self, path: &TreePath) -> TreePath {
        match self.above(path) {
            Some((link, real)) => {
                path.parts().skip(link.depth()).fold(real.clone(), |path, part| path.join(part))
            }
            None => path.clone(),
        }
    }
}
