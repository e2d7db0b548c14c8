//! A stack of layers, merged as overlayfs merges them: the topmost layer takes precedence, whiteouts and
//! opaque folders hide lower layers (kernel documentation, overlayfs).
//!
//! The stack is built layer by layer from the bottom. Paths that will be looked up are announced first. Each
//! layer is then walked once, and only along those paths. So the cost is proportional to the number of
//! layers, not to lookups times layers.
//!
//! * this file: the folders of the stack; [`build`]: adds layers; [`look_up`]: finds paths

mod build;
mod look_up;

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat, fgetxattr, openat2};
use rustix::io::Errno;

use crate::error::Error;
use crate::unpack::{OPAQUE, TreePath};

pub(super) use look_up::{Above, Hit};

/// The memory for a name in addition to its bytes.
const OVERHEAD: usize = 160;

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

    fn full(&self) -> Error {
        let why = format!("dependencies between the layers take more than {} bytes of memory", self.limit);
        Error::limit("the image's layers", why)
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
