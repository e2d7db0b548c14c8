//! Writes the files and folders of a patch.

use std::collections::BTreeSet;
use std::ffi::{CStr, OsStr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod, fchown,
    fgetxattr, flistxattr, fsetxattr, fstat, futimens, linkat, mkdirat, readlinkat, statat, symlinkat,
    unlinkat,
};
use rustix::io::Errno;

use super::PatchInput;
use crate::error::Error;
use crate::store::merged::{Top, is_opaque, open_beneath};
use crate::unpack::{FolderTimes, TreePath};

/// The largest value of an extended attribute (xattr(7)).
const MAX_XATTR: usize = 64 << 10;

const OVERLAY: &[u8] = b"trusted.overlay.";

/// A patch that is being built.
pub(super) struct Patch<'a> {
    pub(super) input: &'a PatchInput<'a>,
    pub(super) root: OwnedFd,
    pub(super) times: FolderTimes,
}

impl Patch<'_> {
    /// Creates a folder with its parents, with the metadata of `model` or of the merged view. An existing
    /// folder is not changed.
    pub(super) fn folder(&mut self, path: &TreePath, model: Option<OwnedFd>) -> Result<(), Error> {
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
    pub(super) fn set_metadata(&mut self, path: &TreePath, model: Option<OwnedFd>) -> Result<(), Error> {
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
    pub(super) fn copy_link(&mut self, path: &TreePath) -> Result<(), Error> {
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
    pub(super) fn merge_folder(&mut self, from: &TreePath, to: &TreePath) -> Result<(), Error> {
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

    pub(super) fn merge_entry(
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
    pub(super) fn add_name(&self, source: &OwnedFd, name: &CStr, to: &TreePath) -> Result<(), Error> {
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
    pub(super) fn hard_link(&mut self, path: &TreePath, target: &TreePath) -> Result<(), Error> {
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

    pub(super) fn set_times(self) -> Result<(), Error> {
        let Self { input, root, times } = self;
        times.for_each(input.what, |path, times| {
            let folder = open_beneath(&root, path);
            folder.and_then(|folder| futimens(&folder, times)).map_err(|error| input.failed(path, error))
        })
    }
}

pub(super) fn same_owner_and_mode(one: &Top, other: &Stat) -> bool {
    (one.uid, one.gid, one.mode) == (other.st_uid, other.st_gid, other.st_mode & 0o7777)
}

/// Copies owner, mode and attributes of a folder. Returns its times, which are set at the end.
pub(super) fn copy_metadata(model: &OwnedFd, folder: &OwnedFd) -> Result<Timestamps, Errno> {
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
pub(super) fn xattrs(folder: &OwnedFd) -> Result<BTreeSet<Vec<u8>>, Errno> {
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
