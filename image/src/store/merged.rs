//! A stack of layers, merged as overlayfs merges them: the topmost layer takes precedence, whiteouts and
//! opaque folders hide lower layers (kernel documentation, overlayfs).
//!
//! The stack is built layer by layer from the bottom. Paths that will be looked up are announced first. Each
//! layer is then walked once, and only along those paths. So the cost is proportional to the number of
//! layers, not to lookups times layers.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fgetxattr, fstat, openat, openat2, readlinkat,
    statat,
};
use rustix::io::Errno;

use crate::error::Error;
use crate::unpack::{OPAQUE, TreePath, is_whiteout};

/// The most links on a path, as in the kernel (path_resolution(7)).
const MAX_LINKS: usize = 40;
/// The memory for a name in addition to its bytes.
const OVERHEAD: usize = 160;
/// If a folder has more announced names than this, the entries of the layer are listed. Otherwise each name
/// is looked up.
const LOOKUP_LIMIT: usize = 64;
const ROOT: usize = 0;
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A stack of layers.
#[derive(Debug)]
pub(super) struct Merged {
    /// The layers' roots, the bottom one first.
    roots: Vec<OwnedFd>,
    nodes: Vec<Node>,
    /// The bytes of memory that are left.
    memory_left: usize,
    limit: usize,
}

/// A merged folder.
#[derive(Debug, Default)]
struct Node {
    /// The layers whose folders are merged here, the topmost last.
    layers: Vec<usize>,
    children: HashMap<Vec<u8>, Child>,
}

/// A name in a folder.
#[derive(Clone, Copy, Debug, Default)]
struct Child {
    top: Option<Top>,
    /// The folder, if the name is one or was announced as one.
    node: Option<usize>,
}

/// The uppermost entry of a name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Top {
    layer: usize,
    pub(super) kind: FileType,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The permissions, with set-id bits.
    pub(super) mode: u32,
}

/// A layer that is looked up above the stack without being part of it.
pub(super) type Above<'a> = Option<&'a OwnedFd>;

/// The entry at a path.
#[derive(Clone, Debug)]
pub(super) struct Hit {
    /// The layer of the stack that provides it. None for the layer above the stack.
    layer: Option<usize>,
    /// The path without links.
    pub(super) path: TreePath,
    pub(super) top: Top,
}

/// A folder on the path of a lookup.
struct LookupFolder {
    path: TreePath,
    node: Option<usize>,
    in_above: bool,
    top: Option<Top>,
}

impl Hit {
    pub(super) fn kind(&self) -> FileType {
        self.top.kind
    }
}

impl Top {
    fn of(layer: usize, stat: &Stat) -> Self {
        let kind = FileType::from_raw_mode(stat.st_mode);
        Self { layer, kind, uid: stat.st_uid, gid: stat.st_gid, mode: stat.st_mode & 0o7777 }
    }

    fn is_folder(&self) -> bool {
        self.kind == FileType::Directory
    }
}

impl Merged {
    /// Creates a stack without layers. Names may use `limit` bytes of memory.
    pub(super) fn new(limit: u64) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Self { roots: Vec::new(), nodes: vec![Node::default()], memory_left: limit, limit }
    }

    /// Announces a path that will be looked up. It is called before layers are added.
    pub(super) fn expect(&mut self, path: &TreePath) -> Result<(), Error> {
        let mut here = ROOT;
        let mut parts = path.parts().peekable();
        while let Some(part) = parts.next() {
            let existing = self.nodes.get(here).and_then(|node| node.children.get(part)).copied();
            let is_last = parts.peek().is_none();
            let mut child = existing.unwrap_or_default();
            if !is_last && child.node.is_none() {
                child.node = Some(self.new_node(Vec::new()).map_err(|_| self.full())?);
            }
            if existing.is_none() {
                self.charge(part.len()).map_err(|_| self.full())?;
            }
            self.set_child(here, part, child);
            here = child.node.unwrap_or(ROOT);
        }
        Ok(())
    }

    /// Adds a layer at the top of the stack.
    pub(super) fn push(&mut self, root: &Path) -> Result<(), Error> {
        let failed = |error| Error::io("read the layer", root, error);
        let fd = rustix::fs::open(root, FOLDER, Mode::empty()).map_err(failed)?;
        let layer = self.roots.len();
        let added = self.add(ROOT, &fd, layer);
        self.roots.push(fd);
        added.map_err(failed)
    }

    /// Opens a folder of one layer, by a path without links.
    pub(super) fn folder(&self, hit: &Hit, path: &TreePath, above: Above<'_>) -> Result<OwnedFd, Errno> {
        match (hit.layer, above) {
            (Some(layer), _) => self.layer_folder(layer, path),
            (None, Some(above)) => open_beneath(above, path),
            (None, None) => Err(Errno::NOENT),
        }
    }

    fn layer_folder(&self, layer: usize, path: &TreePath) -> Result<OwnedFd, Errno> {
        open_beneath(self.roots.get(layer).ok_or(Errno::NOENT)?, path)
    }

    /// Returns the entry at `path` in the stack, with a layer above it if one is given. Links within the path
    /// are followed within the stack. A link at its end is followed only with `follow`.
    pub(super) fn look_up(
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

    fn full(&self) -> Error {
        let why = format!("dependencies between the layers take more than {} bytes of memory", self.limit);
        Error::limit("the image's layers", why)
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

    /// Looks up a name in the layers of a folder. Returns the uppermost entry, and the layers whose folders
    /// of that name are merged.
    fn probe(&self, node: usize, here: &TreePath, name: &[u8]) -> Result<(Option<Top>, Vec<usize>), Errno> {
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

    fn new_node(&mut self, layers: Vec<usize>) -> Result<usize, Errno> {
        self.charge(layers.len() * size_of::<usize>())?;
        self.nodes.push(Node { layers, children: HashMap::new() });
        Ok(self.nodes.len() - 1)
    }

    fn set_child(&mut self, node: usize, name: &[u8], child: Child) {
        if let Some(node) = self.nodes.get_mut(node) {
            node.children.insert(name.to_vec(), child);
        }
    }

    fn charge(&mut self, bytes: usize) -> Result<(), Errno> {
        self.memory_left = self.memory_left.checked_sub(bytes + OVERHEAD).ok_or(Errno::NOMEM)?;
        Ok(())
    }
}

/// Opens a folder beneath a root, by a path without links.
pub(super) fn open_beneath(root: &OwnedFd, path: &TreePath) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path.as_path(), FOLDER, Mode::empty(), resolve)
}

/// Returns whether a folder is opaque: it hides the lower folders of its name.
pub(super) fn is_opaque(folder: &OwnedFd) -> Result<bool, Errno> {
    let mut value = [0; 1];
    match fgetxattr(folder, OPAQUE, &mut value[..]) {
        Ok(_) => Ok(value == *b"y"),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(Errno::RANGE) => Ok(false),
        Err(error) => Err(error),
    }
}
