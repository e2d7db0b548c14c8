//! Builds the content of a patch. The layers are untrusted, so all access is by descriptors.
//!
//! * this file: the layer and the layers below it; [`moved`]: folders that are links in the layers below
//! * [`output`]: writes the patch

mod moved;
mod output;

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, fstat};
use rustix::io::Errno;

use super::merged::{Above, Hit, Merged, is_opaque, open_beneath};
use super::record::LayerRecord;
use crate::error::Error;
use crate::unpack::{FolderTimes, TreePath};
use moved::MovedFolders;
use output::{Patch, same_owner_and_mode, xattrs};

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The form that a folder that the layer does not list has in the layers below.
enum Below {
    /// It makes no difference: the metadata that the unpacker has set is right.
    Same,
    /// A folder with another owner, mode or attributes.
    Folder,
    /// A link to this folder.
    Link(TreePath),
}

/// The layer to patch and the layers below it.
pub(super) struct PatchInput<'a> {
    what: &'a str,
    record: &'a LayerRecord,
    /// The limit on the memory for moved folders, in bytes.
    limit: usize,
    /// The root of the layer.
    own: OwnedFd,
    /// The layers below.
    below: &'a RefCell<Merged>,
}

impl<'a> PatchInput<'a> {
    /// Creates the input of a patch for the layer in folder `own`. `limit` is in bytes of memory.
    pub(super) fn new(
        what: &'a str,
        own: &Path,
        below: &'a RefCell<Merged>,
        record: &'a LayerRecord,
        limit: u64,
    ) -> Result<Self, Error> {
        let fd =
            rustix::fs::open(own, FOLDER, Mode::empty()).map_err(|error| Error::io("open", own, error))?;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Ok(Self { what, record, limit, own: fd, below })
    }

    /// Returns whether the layers below make a difference.
    pub(super) fn is_needed(&self) -> Result<bool, Error> {
        if !self.record.links.is_empty() {
            return Ok(true);
        }
        for path in &self.record.implicit {
            if !matches!(self.below(path)?, Below::Same) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Fills the empty folder `root`.
    pub(super) fn build(&self, root: &Path) -> Result<(), Error> {
        let fd =
            rustix::fs::open(root, FOLDER, Mode::empty()).map_err(|error| Error::io("open", root, error))?;
        let mut patch = Patch { input: self, root: fd, times: FolderTimes::default() };
        patch.set_metadata(&TreePath::default(), None)?;
        let mut moved = MovedFolders::with_limit(self.limit);
        for path in &self.record.implicit {
            if moved.above(path).is_some() {
                continue;
            }
            match self.below(path)? {
                Below::Same => {}
                Below::Folder => patch.folder(path, None)?,
                Below::Link(real) => {
                    patch.copy_link(path)?;
                    patch.merge_folder(path, &real)?;
                    moved.add(self, path, real)?;
                }
            }
        }
        for (path, target) in &self.record.links {
            patch.hard_link(&moved.relocate(path), target)?;
        }
        patch.set_times()
    }

    fn below(&self, path: &TreePath) -> Result<Below, Error> {
        if self.is_hidden(path)? {
            return Ok(Below::Same);
        }
        let Some(hit) = self.look_up(path, false, None)? else {
            return Ok(Below::Same);
        };
        match hit.kind() {
            FileType::Directory => {
                let failed = |error| self.failed(path, error);
                let theirs = self.folder(&hit, &hit.path, None).map_err(failed)?;
                let ours = open_beneath(&self.own, path).map_err(failed)?;
                let same = same_owner_and_mode(&hit.top, &fstat(&ours).map_err(failed)?)
                    && xattrs(&theirs).map_err(failed)?.is_empty();
                Ok(if same { Below::Same } else { Below::Folder })
            }
            FileType::Symlink => {
                // An opaque folder hides the link.
                let ours = open_beneath(&self.own, path).and_then(|folder| is_opaque(&folder));
                if ours.map_err(|error| self.failed(path, error))? {
                    return Ok(Below::Same);
                }
                let end = self.look_up(path, true, None)?;
                let end = end.filter(|end| end.kind() == FileType::Directory);
                // A link without a target is hidden by the layer's folder.
                Ok(end.map_or(Below::Same, |end| Below::Link(end.path)))
            }
            _ => Ok(Below::Same),
        }
    }

    /// Returns whether the layer hides a folder of the layers below. An opaque folder hides the content of
    /// the lower folder, but keeps its owner and mode (OCI image spec, layer, "Opaque Whiteout").
    fn is_hidden(&self, path: &TreePath) -> Result<bool, Error> {
        let mut above = path.split().map(|(folder, _)| folder);
        while let Some(here) = above {
            match open_beneath(&self.own, &here).and_then(|folder| is_opaque(&folder)) {
                Ok(true) => return Ok(true),
                Ok(false) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(self.failed(&here, error)),
            }
            above = here.split().map(|(folder, _)| folder);
        }
        Ok(false)
    }

    fn look_up(&self, path: &TreePath, follow: bool, above: Above<'_>) -> Result<Option<Hit>, Error> {
        self.below.borrow_mut().look_up(path, follow, above)
    }

    /// Looks up a path in all layers, including the layer itself.
    fn look_up_in_all(&self, path: &TreePath, follow: bool) -> Result<Option<Hit>, Error> {
        self.look_up(path, follow, Some(&self.own))
    }

    fn folder(&self, hit: &Hit, path: &TreePath, above: Above<'_>) -> Result<OwnedFd, Errno> {
        self.below.borrow().folder(hit, path, above)
    }

    /// Returns the folder that provides owner, mode and attributes for `path` in the merged view.
    fn model(&self, path: &TreePath) -> Result<Option<OwnedFd>, Error> {
        let own = open_beneath(&self.own, path).ok();
        if own.is_some() && (!self.record.implicit.contains(path) || self.is_hidden(path)?) {
            return Ok(own);
        }
        let hit = self.look_up(path, false, None)?.filter(|hit| hit.kind() == FileType::Directory);
        match hit {
            Some(hit) => {
                let theirs = self.folder(&hit, &hit.path, None);
                theirs.map(Some).map_err(|error| self.failed(path, error))
            }
            None => Ok(own),
        }
    }

    fn failed(&self, path: &TreePath, error: Errno) -> Error {
        Error::io("patch", format!("{path} of {}", self.what), error)
    }
}

#[cfg(test)]
mod tests;
