//! Measures and deletes folders, by descriptors only: a container may have written anything into them,
//! including folders that are nested a hundred thousand deep.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, IFlags, Mode, OFlags, RawDir, Stat, ioctl_getflags, ioctl_setflags, openat, statat,
    unlinkat,
};
use rustix::io::Errno;

use super::disk_usage::DiskUsage;
use crate::error::Error;

/// The most nested folders that are measured. Each needs a descriptor. Layers have fewer.
const COUNT_DEPTH: usize = 300;
/// The most nested folders that are deleted in place. Deeper ones are moved out first.
const DELETE_DEPTH: usize = 50;
/// The most words of 64 inodes that are remembered for files with several names: about 16 MiB.
const MAX_WORDS: usize = 1 << 19;
/// The size of a buffer for names of entries: about a hundred of them.
const NAMES: usize = 8 << 10;
/// The unit of `st_blocks` (stat(2)).
pub(super) const BLOCK: u64 = 512;

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Returns the disk usage of a folder, counted as by `du`: blocks, and each inode once.
pub(super) fn measure(path: &Path) -> Result<DiskUsage, Error> {
    Count { shared: true, ..Count::default() }.folder(path)
}

/// Returns the disk usage of a patch. Files with several names are not counted: they belong to other layers.
pub(super) fn measure_patch(path: &Path) -> Result<DiskUsage, Error> {
    Count::default().folder(path)
}

/// A set of inodes. Filesystems assign adjacent numbers, so 64 adjacent inodes share one word.
#[derive(Default)]
struct Inodes(HashMap<u64, u64>);

impl Inodes {
    /// Adds an inode. Returns whether it is new. When the memory limit is reached, every inode is new: the
    /// result is too high rather than too low.
    fn insert(&mut self, inode: u64) -> bool {
        let (word, bit) = (inode / 64, 1 << (inode % 64));
        match self.0.get_mut(&word) {
            Some(seen) => {
                let new = *seen & bit == 0;
                *seen |= bit;
                new
            }
            None => {
                if self.0.len() < MAX_WORDS {
                    self.0.insert(word, bit);
                }
                true
            }
        }
    }
}

#[derive(Default)]
struct Count {
    usage: DiskUsage,
    seen: Inodes,
    /// Whether files with several names are counted.
    shared: bool,
}

impl Count {
    fn folder(mut self, path: &Path) -> Result<DiskUsage, Error> {
        let counted = rustix::fs::open(path, FOLDER, Mode::empty()).and_then(|fd| {
            self.add(&rustix::fs::fstat(&fd)?, true);
            self.content(&fd, 0)
        });
        match counted {
            // The folder was removed meanwhile.
            Ok(()) | Err(Errno::NOENT) => Ok(self.usage),
            Err(error) => Err(Error::io("measure", path, error)),
        }
    }

    fn content(&mut self, fd: &OwnedFd, depth: usize) -> Result<(), Errno> {
        let mut names = Vec::with_capacity(NAMES);
        let mut entries = RawDir::new(fd, names.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if is_self_or_parent(name) {
                continue;
            }
            let stat = match statat(fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error),
            };
            let is_folder = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir();
            self.add(&stat, is_folder);
            if is_folder && depth < COUNT_DEPTH {
                match openat(fd, name, FOLDER, Mode::empty()) {
                    Ok(child) => self.content(&child, depth + 1)?,
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, stat: &Stat, is_folder: bool) {
        if !is_folder && stat.st_nlink > 1 && (!self.shared || !self.seen.insert(stat.st_ino)) {
            return;
        }
        self.usage.inodes += 1;
        self.usage.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * BLOCK;
    }
}

/// A function that moves a folder that is nested too deep to another place.
pub(super) type MoveOut<'a> = dyn FnMut(BorrowedFd<'_>, &CStr) -> Result<(), Error> + 'a;

/// Deletes the file or folder at `path`. It may be missing. Folders that are nested too deep are passed to
/// `move_out`. If an entry cannot be deleted, the others still are, and the first error is returned at the
/// end.
pub(super) fn delete(path: &Path, move_out: &mut MoveOut<'_>) -> Result<(), Error> {
    let failed = |error| Error::io("delete", path, error);
    match rustix::fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // For a folder, Linux returns EISDIR, or EPERM if it is immutable.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(failed(error)),
    }
    let fd = match rustix::fs::open(path, FOLDER, Mode::empty()) {
        Err(Errno::NOTDIR | Errno::LOOP) => {
            unlock_at(rustix::fs::CWD, path.as_os_str());
            return rustix::fs::unlink(path).map_err(failed);
        }
        other => other.map_err(failed)?,
    };
    empty(path, &fd, 0, move_out)?;
    match rustix::fs::rmdir(path) {
        Err(Errno::PERM) => {
            unlock(&fd);
            rustix::fs::rmdir(path).map_err(failed)
        }
        other => other.map_err(failed),
    }
}

fn empty(path: &Path, fd: &OwnedFd, depth: usize, move_out: &mut MoveOut<'_>) -> Result<(), Error> {
    let failed = |error| Error::io("delete the content of", path, error);
    let mut failure = None;
    for entry in Dir::read_from(fd).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        if is_self_or_parent(name) {
            continue;
        }
        if let Err(error) = remove(path, fd, name, depth, move_out) {
            failure = failure.or(Some(error));
        }
    }
    failure.map_or(Ok(()), Err)
}

/// Removes one entry of a folder with its content.
fn remove(
    path: &Path,
    fd: &OwnedFd,
    name: &CStr,
    depth: usize,
    move_out: &mut MoveOut<'_>,
) -> Result<(), Error> {
    let failed = |error| Error::io("delete the content of", path, error);
    match unlinked(fd, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(error) => return Err(failed(error)),
    }
    if depth >= DELETE_DEPTH {
        return move_out(fd.as_fd(), name);
    }
    let child = openat(fd, name, FOLDER, Mode::empty()).map_err(failed)?;
    empty(path, &child, depth + 1, move_out)?;
    drop(child);
    unlinked(fd, name, AtFlags::REMOVEDIR).map_err(failed)
}

/// Calls unlinkat(2). If the entry or its folder is immutable or append-only (ioctl_iflags(2)), the flags are
/// cleared first.
fn unlinked(folder: &OwnedFd, name: &CStr, flags: AtFlags) -> Result<(), Errno> {
    match unlinkat(folder, name, flags) {
        Err(Errno::PERM) => {
            unlock(folder);
            unlock_at(folder.as_fd(), OsStr::from_bytes(name.to_bytes()));
            unlinkat(folder, name, flags)
        }
        other => other,
    }
}

/// Clears the flags that prevent deletion. An error is ignored: the deletion that follows fails as well.
fn unlock(fd: &OwnedFd) {
    let lock = IFlags::IMMUTABLE | IFlags::APPEND;
    let unlocked = ioctl_getflags(fd).and_then(|flags| ioctl_setflags(fd, flags - lock));
    if let Err(error) = unlocked {
        tracing::debug!(%error, "failed to clear flags that prevent deletion");
    }
}

/// Clears the flags of an entry by name. Only files and folders have such flags. Others are not opened, since
/// opening a device has side effects.
fn unlock_at(folder: BorrowedFd<'_>, name: &OsStr) {
    let opened = |stat: Stat| {
        let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
        (kind.is_file() || kind.is_dir())
            .then(|| {
                openat(
                    folder,
                    name,
                    OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC,
                    Mode::empty(),
                )
                .ok()
            })
            .flatten()
    };
    let fd = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).ok().and_then(opened);
    fd.iter().for_each(unlock);
}

fn is_self_or_parent(name: &CStr) -> bool {
    name == c"." || name == c".."
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::process::Command;

    #[test]
    fn usage_is_that_of_du() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        fs::create_dir_all(path.join("a/b")).unwrap();
        fs::write(path.join("a/file"), vec![1; 100_000]).unwrap();
        fs::hard_link(path.join("a/file"), path.join("a/b/second")).unwrap();
        std::os::unix::fs::symlink("/etc", path.join("link")).unwrap();
        let du = |option: &str| -> u64 {
            let output = Command::new("du").args(["-s", option]).arg(path).output().unwrap();
            String::from_utf8(output.stdout).unwrap().split('\t').next().unwrap().parse().unwrap()
        };
        let usage = measure(path).unwrap();
        assert_eq!(usage.bytes, du("-B1"));
        assert_eq!(usage.inodes, du("--inodes"));
        assert_eq!(measure_patch(path).unwrap().inodes, usage.inodes - 1);
        assert_eq!(measure(&path.join("none")).unwrap(), DiskUsage::default());
    }

    #[test]
    fn inodes_are_new_once_and_take_bounded_memory() {
        let mut inodes = Inodes::default();
        for inode in [0, 1, 63, 64, u64::MAX] {
            assert!(inodes.insert(inode) && !inodes.insert(inode), "{inode}");
        }
        for adjacent in 0..1_000_000 {
            inodes.insert(adjacent);
        }
        assert!(inodes.0.len() < 20_000, "{}", inodes.0.len());
        for distant in 0..2_000_000 {
            inodes.insert(distant * 64);
        }
        assert_eq!(inodes.0.len(), MAX_WORDS);
    }

    #[test]
    fn immutable_files_are_deleted_and_failures_do_not_stop_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path().join("top");
        let lock = |path: &Path, flags| {
            let file = fs::File::open(path).unwrap();
            ioctl_setflags(&file, ioctl_getflags(&file)? | flags)
        };
        let create = || {
            fs::create_dir_all(top.join("a/b")).unwrap();
            for name in ["a/b/file", "a/log", "file"] {
                fs::write(top.join(name), "x").unwrap();
            }
        };
        create();
        if lock(&top.join("file"), IFlags::IMMUTABLE).is_err() {
            return; // This filesystem or this user does not support it.
        }
        for (name, flags) in [
            ("a/b/file", IFlags::IMMUTABLE),
            ("a/b", IFlags::IMMUTABLE),
            ("a/log", IFlags::APPEND),
            ("a", IFlags::APPEND),
            ("", IFlags::IMMUTABLE),
        ] {
            lock(&top.join(name), flags).unwrap();
        }
        delete(&top, &mut |_, _| panic!("not that deep")).unwrap();
        assert!(!top.exists());
        fs::write(&top, "a file itself").unwrap();
        lock(&top, IFlags::IMMUTABLE).unwrap();
        delete(&top, &mut |_, _| panic!("no folder")).unwrap();
        assert!(!top.exists());
    }

    #[test]
    fn the_deepest_folders_are_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path().join("top");
        fs::create_dir(&top).unwrap();
        let mut fd = rustix::fs::open(&top, FOLDER, Mode::empty()).unwrap();
        for _ in 0..5000 {
            rustix::fs::mkdirat(&fd, "deeper", Mode::RWXU).unwrap();
            fd = openat(&fd, "deeper", FOLDER, Mode::empty()).unwrap();
        }
        measure(&top).unwrap();
        let mut pending = vec![top];
        let mut moved = 0;
        while let Some(path) = pending.pop() {
            delete(&path, &mut |parent, name| {
                moved += 1;
                let to = folder.path().join(moved.to_string());
                rustix::fs::renameat(parent, name, rustix::fs::CWD, &to).unwrap();
                pending.push(to);
                Ok(())
            })
            .unwrap();
        }
        assert!(moved > 50);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
