//! A folder that is filled by descriptors only. Each parent is opened beneath the root without following
//! links (openat2(2): `RESOLVE_BENEATH`, `RESOLVE_NO_SYMLINKS`), and the last name is never followed.
//!
//! A link in the layer itself, such as `lib -> usr/lib`, is resolved by a walk in this module. The walk never
//! leaves the layer's root, and its result is opened as above.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::rc::Rc;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, XattrFlags, fsetxattr, mkdirat, openat2,
    readlinkat, statat, unlinkat,
};
use rustix::io::Errno;

use super::dependencies::Dependencies;
use super::limits::Budget;
use super::path::TreePath;
use crate::error::Error;

/// The attribute of a folder that hides the folder of that name in lower layers (kernel documentation,
/// overlayfs, "whiteouts and opaque directories").
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";
/// The most links on a path, as in the kernel (path_resolution(7)).
const MAX_LINKS: usize = 40;
const FOLDER_MODE: Mode = Mode::from_raw_mode(0o755);

/// The place of an entry: its folder, which exists, and the name in it.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) folder: Rc<OwnedFd>,
    pub(super) name: Vec<u8>,
    /// The path without links.
    pub(super) path: TreePath,
}

impl Place {
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    pub(super) fn name(&self) -> &OsStr {
        OsStr::from_bytes(&self.name)
    }
}

/// The tree of one layer while it is unpacked.
pub(super) struct Tree<'a> {
    root: Rc<OwnedFd>,
    what: &'a str,
    budget: &'a Budget,
    /// The folder of the last entry: consecutive entries are often in the same folder.
    last: Option<(TreePath, TreePath, Rc<OwnedFd>)>,
    pub(super) dependencies: Dependencies<'a>,
}

/// Returns whether this is a whiteout: a character device 0/0.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

pub(super) fn is_folder(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

impl<'a> Tree<'a> {
    pub(super) fn new(root: OwnedFd, what: &'a str, budget: &'a Budget) -> Self {
        let dependencies = Dependencies::new(what, budget.limits.notes);
        Self { root: Rc::new(root), what, budget, last: None, dependencies }
    }

    /// Returns the place of an entry, and creates missing parent folders. `None` for the root itself.
    pub(super) fn place(&mut self, path: &TreePath) -> Result<Option<Place>, Error> {
        if path.depth() > self.budget.limits.depth {
            let why = format!("{path} is deeper than {} folders", self.budget.limits.depth);
            return Err(Error::limit(self.what, why));
        }
        let Some((folder, name)) = path.split() else {
            return Ok(None);
        };
        let cached = self.last.as_ref().filter(|(given, _, _)| *given == folder);
        let (real, fd) = match cached {
            Some((_, real, fd)) => (real.clone(), fd.clone()),
            None => {
                let (real, fd) =
                    self.folder(&folder, true)?.ok_or_else(|| self.failed(path, Errno::NOENT))?;
                self.last = Some((folder, real.clone(), fd.clone()));
                (real, fd)
            }
        };
        Ok(Some(Place { folder: fd, name: name.to_vec(), path: real.join(name) }))
    }

    /// Returns the place of a hard link's target, if its folder exists.
    pub(super) fn find(&mut self, path: &TreePath) -> Result<Option<Place>, Error> {
        let Some((folder, name)) = path.split() else {
            return Ok(None);
        };
        let resolved = self.folder(&folder, false)?;
        Ok(resolved.map(|(real, fd)| Place { folder: fd, name: name.to_vec(), path: real.join(name) }))
    }

    /// Returns the root folder.
    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens a folder by a path without links.
    pub(super) fn open(&self, real: &TreePath) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        openat2(&self.root, real.as_path(), flags, Mode::empty(), resolve)
    }

    fn folder(&mut self, path: &TreePath, create: bool) -> Result<Option<(TreePath, Rc<OwnedFd>)>, Error> {
        match self.open(path) {
            Ok(fd) => return Ok(Some((path.clone(), Rc::new(fd)))),
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => {}
            Err(error) => return Err(self.failed(path, error)),
        }
        let Some(real) = self.walk(path, create)? else {
            return Ok(None);
        };
        let fd = self.open(&real).map_err(|error| self.failed(path, error))?;
        Ok(Some((real, Rc::new(fd))))
    }

    /// Resolves a folder's path part by part within the tree, and creates missing folders.
    fn walk(&mut self, path: &TreePath, create: bool) -> Result<Option<TreePath>, Error> {
        let mut real: Vec<Vec<u8>> = Vec::new();
        let mut pending: VecDeque<Vec<u8>> = path.parts().map(<[u8]>::to_vec).collect();
        let mut links = 0;
        while let Some(part) = pending.pop_front() {
            if part == b"." {
                continue;
            }
            if part == b".." {
                real.pop();
                continue;
            }
            if real.len() >= self.budget.limits.depth {
                let why = format!("{path} is deeper than {} folders", self.budget.limits.depth);
                return Err(Error::limit(self.what, why));
            }
            let here = joined(&real);
            let fd = self.open(&here).map_err(|error| self.failed(path, error))?;
            let name = OsStr::from_bytes(&part);
            match statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if is_folder(&stat) => real.push(part),
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(self.failed(path, Errno::LOOP));
                    }
                    let target =
                        readlinkat(&fd, name, Vec::new()).map_err(|error| self.failed(path, error))?;
                    let target = target.to_bytes();
                    if target.starts_with(b"/") {
                        real.clear();
                    }
                    let parts = target.split(|byte| *byte == b'/').filter(|part| !part.is_empty());
                    for part in parts.rev() {
                        pending.push_front(part.to_vec());
                    }
                }
                Ok(stat) if is_whiteout(&stat) && create => {
                    // The layer hides a name and then adds an entry below a folder of that name.
                    unlinkat(&fd, name, AtFlags::empty()).map_err(|error| self.failed(path, error))?;
                    self.create_implicit(&fd, &here, &part, true)?;
                    real.push(part);
                }
                Err(Errno::NOENT) if create => {
                    self.create_implicit(&fd, &here, &part, false)?;
                    real.push(part);
                }
                Err(Errno::NOENT) => return Ok(None),
                Ok(_) if !create => return Ok(None),
                Ok(_) => return Err(self.failed(path, Errno::NOTDIR)),
                Err(error) => return Err(self.failed(path, error)),
            }
        }
        Ok(Some(joined(&real)))
    }

    fn create_implicit(
        &mut self,
        fd: &OwnedFd,
        here: &TreePath,
        name: &[u8],
        opaque: bool,
    ) -> Result<(), Error> {
        self.budget.take_entry(self.what)?;
        let path = here.join(name);
        mkdirat(fd, OsStr::from_bytes(name), FOLDER_MODE).map_err(|error| self.failed(&path, error))?;
        if opaque {
            return self.make_opaque(&path);
        }
        self.dependencies.add_implicit(path)
    }

    /// Marks a folder as opaque: it hides the folder of that name in lower layers.
    pub(super) fn make_opaque(&self, real: &TreePath) -> Result<(), Error> {
        let fd = self.open(real).map_err(|error| self.failed(real, error))?;
        fsetxattr(fd, OPAQUE, b"y", XattrFlags::empty()).map_err(|error| self.failed(real, error))
    }

    /// Removes the file or folder at a place. It may be missing.
    pub(super) fn remove(&mut self, place: &Place) -> Result<(), Error> {
        // The cached folder may have been reached through the removed folder or link.
        self.last = None;
        let removed = match unlinkat(place.fd(), place.name(), AtFlags::empty()) {
            Err(Errno::ISDIR) => remove_folder(place.fd(), place.name()),
            other => other,
        };
        match removed {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(self.failed(&place.path, error)),
        }
        self.dependencies.forget(&place.path);
        Ok(())
    }

    /// Returns an error about an entry. If the errno means that such a name is invalid, the layer is corrupt.
    pub(super) fn failed(&self, path: &TreePath, error: Errno) -> Error {
        let faulty = [
            Errno::NAMETOOLONG,
            Errno::LOOP,
            Errno::NOTDIR,
            Errno::ISDIR,
            Errno::INVAL,
            Errno::NOENT,
            Errno::EXIST,
            Errno::RANGE,
            Errno::TOOBIG,
            Errno::ILSEQ,
        ];
        if faulty.contains(&error) {
            return Error::corrupt(self.what, format!("{path}: {}", io::Error::from(error)));
        }
        Error::io("unpack", format!("{} of {}", path, self.what), error)
    }
}

fn joined(parts: &[Vec<u8>]) -> TreePath {
    parts.iter().fold(TreePath::default(), |path, part| path.join(part))
}

/// Removes a folder and its content. The recursion is bounded by the limit on the depth of entries.
fn remove_folder(parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    for entry in Dir::read_from(&fd)? {
        let entry = entry?;
        let child = entry.file_name();
        if child == c"." || child == c".." {
            continue;
        }
        match unlinkat(&fd, child, AtFlags::empty()) {
            Err(Errno::ISDIR) => remove_folder(fd.as_fd(), OsStr::from_bytes(child.to_bytes()))?,
            other => other?,
        }
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}
