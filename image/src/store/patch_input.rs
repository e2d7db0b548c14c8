//! Builds the content of a patch. The layers are untrusted, so all access is by descriptors.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, OsStr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod,
    fchown, fgetxattr, flistxattr, fsetxattr, fstat, futimens, linkat, mkdirat, readlinkat, statat,
    symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::merged::{Above, Hit, Merged, Top, is_opaque, open_beneath};
use super::record::LayerRecord;
use crate::error::Error;
use crate::unpack::{FolderTimes, TreePath};

/// The largest value of an extended attribute (xattr(7)).
const MAX_XATTR: usize = 64 << 10;
/// The memory for a path in addition to its bytes.
const OVERHEAD: usize = 64;
const OVERLAY: &[u8] = b"trusted.overlay.";
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
        let mut moved = MovedFolders { memory_left: self.limit, ..MovedFolders::default() };
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

/// The folders of the layer that are links in the layers below, with the targets of the links.
#[derive(Default)]
struct MovedFolders {
    folders: BTreeMap<TreePath, TreePath>,
    /// The bytes of memory that are left for them.
    memory_left: usize,
}

impl MovedFolders {
    fn add(&mut self, input: &PatchInput<'_>, path: &TreePath, real: TreePath) -> Result<(), Error> {
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
    fn above(&self, path: &TreePath) -> Option<(TreePath, &TreePath)> {
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
    fn relocate(&self, path: &TreePath) -> TreePath {
        match self.above(path) {
            Some((link, real)) => {
                path.parts().skip(link.depth()).fold(real.clone(), |path, part| path.join(part))
            }
            None => path.clone(),
        }
    }
}

/// A patch that is being built.
struct Patch<'a> {
    input: &'a PatchInput<'a>,
    root: OwnedFd,
    times: FolderTimes,
}

impl Patch<'_> {
    /// Creates a folder with its parents, with the metadata of `model` or of the merged view. An existing
    /// folder is not changed.
    fn folder(&mut self, path: &TreePath, model: Option<OwnedFd>) -> Result<(), Error> {
        let failed = |error| self.input.failed(path, error);
        let Some((parent, name)) = path.split() else {
            return Ok(());
        };
        match open_beneath(&self.root, path) {
            Ok(_folder) => return Ok(()),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(failed(error)),
        }
        self.folder(&parent, None)?;
        let parent = open_beneath(&self.root, &parent).map_err(failed)?;
        mkdirat(&parent, OsStr::from_bytes(name), Mode::RWXU).map_err(failed)?;
        self.set_metadata(path, model)
    }

    /// Sets the metadata of a new folder of the patch.
    fn set_metadata(&mut self, path: &TreePath, model: Option<OwnedFd>) -> Result<(), Error> {
        let failed = |error| self.input.failed(path, error);
        let folder = open_beneath(&self.root, path).map_err(failed)?;
        let model = match model {
            Some(model) => Some(model),
            None => self.input.model(path)?,
        };
        match model {
            Some(model) => {
                let times = copy_metadata(&model, &folder).map_err(failed)?;
                let added = self.times.add(&self.root, path, &times);
                added.map_err(|error| Error::io("record the times of folders of", self.input.what, error))
            }
            None => fchmod(&folder, Mode::from_raw_mode(0o755)).map_err(failed),
        }
    }

    /// Copies the link that the layers below have in place of the layer's folder.
    fn copy_link(&mut self, path: &TreePath) -> Result<(), Error> {
        let Some((parent, name)) = path.split() else {
            return Err(Error::internal("patch a layer", "the root is a link"));
        };
        self.folder(&parent, None)?;
        let Some(hit) = self.input.look_up(path, false, None)? else {
            return Ok(());
        };
        let failed = |error| self.input.failed(path, error);
        let (real_parent, real_name) = hit.path.split().unwrap_or_default();
        let theirs = self.input.folder(&hit, &real_parent, None).map_err(failed)?;
        let target = readlinkat(&theirs, OsStr::from_bytes(real_name), Vec::new()).map_err(failed)?;
        let parent = open_beneath(&self.root, &parent).map_err(failed)?;
        let name = OsStr::from_bytes(name);
        symlinkat(&target, &parent, name).map_err(failed)?;
        let (owner, group) = (Uid::from_raw(hit.top.uid), Gid::from_raw(hit.top.gid));
        chownat(&parent, name, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)
    }

    /// Adds the content of the layer's folder `from` to the folder `to`.
    fn merge_folder(&mut self, from: &TreePath, to: &TreePath) -> Result<(), Error> {
        let source = open_beneath(&self.input.own, from).map_err(|error| self.input.failed(from, error))?;
        if is_opaque(&source).map_err(|error| self.input.failed(from, error))? {
            let why = format!("{from} is opaque, but a link in the layers below");
            return Err(Error::unsupported(self.input.what, why));
        }
        self.folder(to, None)?;
        for entry in Dir::read_from(&source).map_err(|error| self.input.failed(from, error))? {
            let entry = entry.map_err(|error| self.input.failed(from, error))?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            self.merge_entry(&source, name, &from.join(name.to_bytes()), &to.join(name.to_bytes()))?;
        }
        Ok(())
    }

    fn merge_entry(
        &mut self,
        source: &OwnedFd,
        name: &CStr,
        from: &TreePath,
        to: &TreePath,
    ) -> Result<(), Error> {
        let stat = statat(source, name, AtFlags::SYMLINK_NOFOLLOW);
        let stat = stat.map_err(|error| self.input.failed(from, error))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return self.add_name(source, name, to);
        }
        if !self.input.record.implicit.contains(from) {
            let model =
                open_beneath(&self.input.own, from).map_err(|error| self.input.failed(from, error))?;
            self.folder(to, Some(model))?;
            return self.merge_folder(from, to);
        }
        let existing = self.input.look_up_in_all(to, true)?;
        match existing.filter(|hit| hit.kind() == FileType::Directory) {
            Some(hit) => self.merge_folder(from, &hit.path),
            None => self.merge_folder(from, to),
        }
    }

    /// Adds another name of a file. An existing file of the patch is replaced: this one comes later in the
    /// archive.
    fn add_name(&self, source: &OwnedFd, name: &CStr, to: &TreePath) -> Result<(), Error> {
        let failed = |error| self.input.failed(to, error);
        let Some((parent, new_name)) = to.split() else {
            return Err(Error::internal("patch a layer", "the root is a file"));
        };
        let parent = open_beneath(&self.root, &parent).map_err(failed)?;
        let new_name = OsStr::from_bytes(new_name);
        // Without AT_SYMLINK_FOLLOW, a link to a symbolic link is another name of the symbolic link.
        match linkat(source, name, &parent, new_name, AtFlags::empty()) {
            Err(Errno::EXIST) => {
                unlinkat(&parent, new_name, AtFlags::empty()).map_err(failed)?;
                linkat(source, name, &parent, new_name, AtFlags::empty()).map_err(failed)
            }
            other => other.map_err(failed),
        }
    }

    /// Creates a hard link of the layer to a file of a layer below.
    fn hard_link(&mut self, path: &TreePath, target: &TreePath) -> Result<(), Error> {
        let hit = self.input.look_up_in_all(target, false)?;
        let hit = hit.filter(|hit| hit.kind() != FileType::Directory).ok_or_else(|| {
            let why =
                format!("{path} is a hard link to {target}, which is not a file of this or a lower layer");
            Error::corrupt(self.input.what, why)
        })?;
        let Some((parent, name)) = hit.path.split() else {
            return Err(Error::internal("patch a layer", "the root is a file"));
        };
        let source = self.input.folder(&hit, &parent, Some(&self.input.own));
        let source = source.map_err(|error| self.input.failed(target, error))?;
        if let Some((folder, _)) = path.split() {
            self.folder(&folder, None)?;
        }
        let name = std::ffi::CString::new(name).map_err(|error| Error::internal("patch a layer", error))?;
        self.add_name(&source, &name, path)
    }

    fn set_times(self) -> Result<(), Error> {
        let Self { input, root, times } = self;
        times.for_each(input.what, |path, times| {
            let folder = open_beneath(&root, path);
            folder.and_then(|folder| futimens(&folder, times)).map_err(|error| input.failed(path, error))
        })
    }
}

fn same_owner_and_mode(one: &Top, other: &Stat) -> bool {
    (one.uid, one.gid, one.mode) == (other.st_uid, other.st_gid, other.st_mode & 0o7777)
}

/// Copies owner, mode and attributes of a folder. Returns its times, which are set at the end.
fn copy_metadata(model: &OwnedFd, folder: &OwnedFd) -> Result<Timestamps, Errno> {
    let stat = fstat(model)?;
    fchown(folder, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    fchmod(folder, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    for name in xattrs(model)? {
        let name = OsStr::from_bytes(&name);
        let mut value = vec![0; MAX_XATTR];
        let length = fgetxattr(model, name, &mut value[..])?;
        value.truncate(length);
        fsetxattr(folder, name, &value, XattrFlags::empty())?;
    }
    let time = |seconds: i64, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
    };
    Ok(Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    })
}

/// Returns the names of a folder's attributes. Those of overlayfs are skipped: they apply to one layer.
fn xattrs(folder: &OwnedFd) -> Result<BTreeSet<Vec<u8>>, Errno> {
    let mut names = vec![0; MAX_XATTR];
    let length = match flistxattr(folder, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error),
    };
    names.truncate(length);
    let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(names.filter(|name| !name.starts_with(OVERLAY)).map(<[u8]>::to_vec).collect())
}

#[cfg(test)]
mod tests;
