//! Finds the entry at a path, through links.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{AtFlags, FileType, fstat, readlinkat, statat};
use rustix::io::Errno;

use super::{Child, Merged, ROOT, Top, is_opaque, open_beneath};
use crate::error::Error;
use crate::unpack::{TreePath, is_whiteout};

/// The most links on a path, as in the kernel (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// A layer that is looked up above the stack without being part of it.
pub(in crate::store) type Above<'a> = Option<&'a OwnedFd>;

/// The entry at a path.
#[derive(Clone, Debug)]
pub(in crate::store) struct Hit {
    /// The layer of the stack that provides it. None for the layer above the stack.
    pub(super) layer: Option<usize>,
    /// The path without links.
    pub(in crate::store) path: TreePath,
    pub(in crate::store) top: Top,
}

/// A folder on the path of a lookup.
struct LookupFolder {
    path: TreePath,
    node: Option<usize>,
    in_above: bool,
    top: Option<Top>,
}

impl Hit {
    pub(in crate::store) fn kind(&self) -> FileType {
        self.top.kind
    }
}

impl Merged {
    /// Returns the entry at `path` in the stack, with a layer above it if one is given. Links within the path
    /// are followed within the stack. A link at its end is followed only with `follow`.
    pub(in crate::store) fn look_up(
        &mut self,
        path: &TreePath,
        follow: bool,
        above: Above<'_>,
    ) -> Result<Option<Hit>, Error> {
        self.resolve(path, follow, above).map_err(|error| match error {
            Errno::NOMEM => self.full(),
            error => Error::io("look up in the layers below", path.to_string(), error),
        })
    }

    fn resolve(&mut self, path: &TreePath, follow: bool, above: Above<'_>) -> Result<Option<Hit>, Errno> {
        let root = LookupFolder {
            path: TreePath::default(),
            node: (!self.roots.is_empty()).then_some(ROOT),
            in_above: above.is_some(),
            top: None,
        };
        let mut places = vec![root];
        let mut pending: VecDeque<Vec<u8>> = path.parts().map(<[u8]>::to_vec).collect();
        let mut links = 0;
        while let Some(part) = pending.pop_front() {
            if part == b"." {
                continue;
            }
            if part == b".." {
                if places.len() > 1 {
                    places.pop();
                }
                continue;
            }
            let Some(here) = places.last() else { return Ok(None) };
            let Some((entry, next)) = self.step(here, &part, above)? else { return Ok(None) };
            match entry.kind {
                FileType::Directory => places.push(next),
                FileType::Symlink if follow || !pending.is_empty() => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP);
                    }
                    let folder = match (next.in_above, above) {
                        (true, Some(above)) => open_beneath(above, &here.path)?,
                        _ => self.layer_folder(entry.layer, &here.path)?,
                    };
                    let target = readlinkat(folder, OsStr::from_bytes(&part), Vec::new())?;
                    let target = target.to_bytes();
                    if target.starts_with(b"/") {
                        places.truncate(1);
                    }
                    let parts = target.split(|byte| *byte == b'/').filter(|part| !part.is_empty());
                    parts.rev().for_each(|part| pending.push_front(part.to_vec()));
                }
                _ if pending.is_empty() => {
                    let layer = (!next.in_above).then_some(entry.layer);
                    return Ok(Some(Hit { layer, path: next.path, top: entry }));
                }
                _ => return Ok(None),
            }
        }
        match places.pop() {
            Some(place) => self.at(place, above),
            None => Ok(None),
        }
    }

    /// Returns the folder at the end of a lookup.
    fn at(&self, place: LookupFolder, above: Above<'_>) -> Result<Option<Hit>, Errno> {
        let LookupFolder { path, in_above, top, node } = place;
        let layer = match (in_above, top) {
            (true, _) => None,
            (false, Some(top)) => Some(top.layer),
            // The root has no entry in a parent folder.
            (false, None) => {
                let node = node.and_then(|node| self.nodes.get(node));
                let Some(layer) = node.and_then(|node| node.layers.last()) else { return Ok(None) };
                Some(*layer)
            }
        };
        let top = match (top, layer, above) {
            (Some(top), ..) => top,
            (None, None, Some(above)) => Top::of(0, &fstat(above)?),
            (None, layer, _) => {
                let layer = layer.unwrap_or_default();
                Top::of(layer, &fstat(self.layer_folder(layer, &path)?)?)
            }
        };
        Ok(Some(Hit { layer, path, top }))
    }

    /// Looks up a name in a folder. Returns its entry and its place.
    fn step(
        &mut self,
        here: &LookupFolder,
        name: &[u8],
        above: Above<'_>,
    ) -> Result<Option<(Top, LookupFolder)>, Errno> {
        let path = here.path.join(name);
        if let Some(above) = above.filter(|_| here.in_above) {
            let folder = open_beneath(above, &here.path)?;
            match statat(&folder, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
                Ok(stat) if is_whiteout(&stat) => return Ok(None),
                Ok(stat) => {
                    let top = Top::of(0, &stat);
                    let mut node = None;
                    if top.is_folder() && !is_opaque(&open_beneath(above, &path)?)? {
                        let child = self.child(here.node, &here.path, name)?;
                        node = child.filter(|child| child.top.is_some_and(|top| top.is_folder()));
                    }
                    let node = match node {
                        Some(_) => self.node_of(here.node, &here.path, name)?,
                        None => None,
                    };
                    return Ok(Some((top, LookupFolder { path, node, in_above: true, top: Some(top) })));
                }
            }
        }
        let Some(top) = self.child(here.node, &here.path, name)?.and_then(|child| child.top) else {
            return Ok(None);
        };
        let node = if top.is_folder() { self.node_of(here.node, &here.path, name)? } else { None };
        Ok(Some((top, LookupFolder { path, node, in_above: false, top: Some(top) })))
    }

    /// Returns a name in a folder of the stack. If it was not announced, the layers are probed.
    fn child(&mut self, node: Option<usize>, here: &TreePath, name: &[u8]) -> Result<Option<Child>, Errno> {
        let Some(node) = node else { return Ok(None) };
        let cached = self.nodes.get(node).and_then(|node| node.children.get(name)).copied();
        if cached.is_some() {
            return Ok(cached);
        }
        let (top, layers) = self.probe(node, here, name)?;
        self.charge(name.len())?;
        let folder = if layers.is_empty() { None } else { Some(self.new_node(layers)?) };
        let child = Child { top, node: folder };
        self.set_child(node, name, child);
        Ok(Some(child))
    }

    /// Returns the folder of a name.
    fn node_of(&mut self, node: Option<usize>, here: &TreePath, name: &[u8]) -> Result<Option<usize>, Errno> {
        let (Some(child), Some(node)) = (self.child(node, here, name)?, node) else { return Ok(None) };
        if child.node.is_some() {
            return Ok(child.node);
        }
        let (top, layers) = self.probe(node, here, name)?;
        let folder = Some(self.new_node(layers)?);
        self.set_child(node, name, Child { top, node: folder });
        Ok(folder)
    }
}
