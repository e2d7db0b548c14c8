//! Looking into a stack of layers as overlayfs will show it: the topmost has the word, whiteouts and opaque folders hide
//! what is below (kernel documentation, overlayfs).

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, fgetxattr, fstat, openat2, readlinkat, statat,
};
use rustix::io::Errno;

use crate::error::Error;
use crate::unpack::{OPAQUE, TreePath, is_whiteout};

/// As the kernel's own limit (path_resolution(7)).
const MAX_LINKS: usize = 40;
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Layers, the topmost first.
#[derive(Debug)]
pub(super) struct Stack {
    roots: Vec<OwnedFd>,
}

/// What is at a path.
#[derive(Clone, Debug)]
pub(super) struct Hit {
    /// The layer that shows it, by its place in the stack.
    pub(super) layer: usize,
    /// The path without any link on the way.
    pub(super) path: TreePath,
    pub(super) stat: Stat,
}

/// What a name in a folder stands for.
#[derive(Default)]
struct Merged {
    /// The uppermost layer that has it.
    found: Option<(usize, Stat)>,
    /// The layers whose folders of that name are shown as one.
    layers: Vec<usize>,
}

impl Hit {
    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }
}

impl Stack {
    /// Opens the roots of layers, the topmost first.
    pub(super) fn open(roots: &[PathBuf]) -> Result<Self, Error> {
        let open = |root: &PathBuf| {
            rustix::fs::open(root, FOLDER, Mode::empty()).map_err(|error| Error::io("open", root, error))
        };
        Ok(Self { roots: roots.iter().map(open).collect::<Result<_, _>>()? })
    }

    /// A folder of one layer, by its path without links.
    pub(super) fn folder(&self, layer: usize, path: &TreePath) -> Result<OwnedFd, Errno> {
        let root = self.roots.get(layer).ok_or(Errno::NOENT)?;
        open_beneath(root, path)
    }

    /// What is at `path`. Links on the way are followed within the stack; one at the end only with `follow`.
    pub(super) fn look_up(&self, path: &TreePath, follow: bool) -> Result<Option<Hit>, Error> {
        self.resolve(path, follow)
            .map_err(|error| Error::io("look up in the layers below", path.to_string(), error))
    }

    fn resolve(&self, path: &TreePath, follow: bool) -> Result<Option<Hit>, Errno> {
        let mut real = vec![TreePath::default()];
        // The layers that take part in each folder on the way.
        let mut layers: Vec<Vec<usize>> = vec![(0..self.roots.len()).collect()];
        let mut pending: VecDeque<Vec<u8>> = path.parts().map(<[u8]>::to_vec).collect();
        let mut links = 0;
        while let Some(part) = pending.pop_front() {
            if part == b"." {
                continue;
            }
            if part == b".." {
                if real.len() > 1 {
                    real.pop();
                    layers.pop();
                }
                continue;
            }
            let (Some(here), Some(candidates)) = (real.last(), layers.last()) else {
                return Ok(None);
            };
            let merged = self.find(candidates, here, &part)?;
            let Some((layer, stat)) = merged.found else {
                return Ok(None);
            };
            let child = here.join(&part);
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    real.push(child);
                    layers.push(merged.layers);
                }
                FileType::Symlink if follow || !pending.is_empty() => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP);
                    }
                    let target = readlinkat(self.folder(layer, here)?, OsStr::from_bytes(&part), Vec::new())?;
                    if target.to_bytes().starts_with(b"/") {
                        real.truncate(1);
                        layers.truncate(1);
                    }
                    for part in
                        target.to_bytes().split(|byte| *byte == b'/').rev().filter(|part| !part.is_empty())
                    {
                        pending.push_front(part.to_vec());
                    }
                }
                _ if pending.is_empty() => return Ok(Some(Hit { layer, path: child, stat })),
                _ => return Ok(None),
            }
        }
        let (Some(path), Some(layer)) = (real.pop(), layers.last().and_then(|layers| layers.first())) else {
            return Ok(None);
        };
        let stat = fstat(self.folder(*layer, &path)?)?;
        Ok(Some(Hit { layer: *layer, path, stat }))
    }

    /// What a name in a folder stands for, where `candidates` are merged in that folder.
    fn find(&self, candidates: &[usize], here: &TreePath, name: &[u8]) -> Result<Merged, Errno> {
        let mut merged = Merged::default();
        for layer in candidates.iter().copied() {
            let fd = self.folder(layer, here)?;
            let stat = match statat(&fd, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error),
            };
            if is_whiteout(&stat) {
                break;
            }
            let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if merged.found.is_none() {
                merged.found = Some((layer, stat));
            }
            if !is_folder {
                break;
            }
            merged.layers.push(layer);
            if is_opaque(&self.folder(layer, &here.join(name))?)? {
                break;
            }
        }
        Ok(merged)
    }
}

/// Opens a folder beneath a root, by a path without links.
pub(super) fn open_beneath(root: &OwnedFd, path: &TreePath) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path.as_path(), FOLDER, Mode::empty(), resolve)
}

/// Whether a folder hides what is below it.
pub(super) fn is_opaque(folder: &OwnedFd) -> Result<bool, Errno> {
    let mut value = [0; 1];
    match fgetxattr(folder, OPAQUE, &mut value[..]) {
        Ok(_) => Ok(value == *b"y"),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(Errno::RANGE) => Ok(false),
        Err(error) => Err(error),
    }
}
