//! Adds layers to a stack.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, Mode, openat, statat};
use rustix::io::Errno;

use super::{Child, FOLDER, Merged, ROOT, Top, is_opaque};
use crate::error::Error;
use crate::unpack::{TreePath, is_whiteout};

/// If a folder has more announced names than this, the entries of the layer are listed. Otherwise each name
/// is looked up.
const LOOKUP_LIMIT: usize = 64;

impl Merged {
    /// Adds a layer at the top of the stack.
    pub(in crate::store) fn push(&mut self, root: &Path) -> Result<(), Error> {
        let failed = |error| Error::io("read the layer", root, error);
        let fd = rustix::fs::open(root, FOLDER, Mode::empty()).map_err(failed)?;
        let layer = self.roots.len();
        let added = self.add(ROOT, &fd, layer);
        self.roots.push(fd);
        added.map_err(failed)
    }

    /// Looks up a name in the layers of a folder. Returns the uppermost entry, and the layers whose folders
    /// of that name are merged.
    pub(super) fn probe(
        &self,
        node: usize,
        here: &TreePath,
        name: &[u8],
    ) -> Result<(Option<Top>, Vec<usize>), Errno> {
        let (mut top, mut layers) = (None, Vec::new());
        let candidates = self.nodes.get(node).map(|node| node.layers.as_slice()).unwrap_or_default();
        for layer in candidates.iter().rev().copied() {
            let folder = self.layer_folder(layer, here)?;
            let name = OsStr::from_bytes(name);
            let stat = match statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                other => other?,
            };
            if is_whiteout(&stat) {
                break;
            }
            let entry = Top::of(layer, &stat);
            top = top.or(Some(entry));
            if !entry.is_folder() {
                break;
            }
            layers.push(layer);
            if is_opaque(&openat(&folder, name, FOLDER, Mode::empty())?)? {
                break;
            }
        }
        layers.reverse();
        Ok((top, layers))
    }

    /// Adds a layer's folder to a merged folder.
    fn add(&mut self, node: usize, fd: &OwnedFd, layer: usize) -> Result<(), Errno> {
        let Some(place) = self.nodes.get_mut(node) else { return Ok(()) };
        place.layers.push(layer);
        let mut children = std::mem::take(&mut place.children);
        let added = self.add_children(&mut children, fd, layer);
        if let Some(place) = self.nodes.get_mut(node) {
            place.children = children;
        }
        added
    }

    fn add_children(
        &mut self,
        children: &mut HashMap<Vec<u8>, Child>,
        fd: &OwnedFd,
        layer: usize,
    ) -> Result<(), Errno> {
        if children.len() <= LOOKUP_LIMIT {
            return children.iter_mut().try_for_each(|(name, child)| self.add_child(child, fd, name, layer));
        }
        for entry in Dir::read_from(fd)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if let Some(child) = children.get_mut(name) {
                self.add_child(child, fd, name, layer)?;
            }
        }
        Ok(())
    }

    fn add_child(&mut self, child: &mut Child, fd: &OwnedFd, name: &[u8], layer: usize) -> Result<(), Errno> {
        let name = OsStr::from_bytes(name);
        let stat = match statat(fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()),
            other => other?,
        };
        let former = child.top.take();
        if is_whiteout(&stat) {
            self.hide(child.node);
            return Ok(());
        }
        let top = Top::of(layer, &stat);
        child.top = Some(top);
        if !top.is_folder() {
            self.hide(child.node);
            return Ok(());
        }
        let Some(node) = child.node else { return Ok(()) };
        let folder = openat(fd, name, FOLDER, Mode::empty())?;
        if !former.is_some_and(|former| former.is_folder()) || is_opaque(&folder)? {
            self.hide(Some(node));
        }
        self.add(node, &folder, layer)
    }

    /// Hides the content of a folder.
    fn hide(&mut self, node: Option<usize>) {
        let Some(place) = node.and_then(|node| self.nodes.get_mut(node)) else { return };
        if place.layers.is_empty() {
            return;
        }
        place.layers.clear();
        let below: Vec<usize> = place
            .children
            .values_mut()
            .filter_map(|child| {
                child.top = None;
                child.node
            })
            .collect();
        below.into_iter().for_each(|node| self.hide(Some(node)));
    }
}
