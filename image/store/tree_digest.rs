//! The digest of a folder's content: names, kinds, owners, modes, times, attributes and bytes, so that any later change of
//! a layer shows. It is ours alone, and compared only with what the same code has written down.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, fgetxattr, flistxattr, lgetxattr, llistxattr, openat,
    readlinkat, statat,
};
use rustix::io::{Errno, read};

use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::Error;

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const BUFFER: usize = 256 << 10;
/// The largest list of names and the largest value of attributes (xattr(7)).
const MAX_XATTR: usize = 64 << 10;
/// Deeper than any layer may be: a layer's folders are bounded when it is unpacked.
const MAX_DEPTH: usize = 4096;

/// The digest of all that is below a folder, and of the folder itself.
pub(super) fn tree_digest(root: &Path) -> Result<Digest, Error> {
    let failed = |error| Error::io("read for its digest", root, error);
    let fd = rustix::fs::open(root, FOLDER, Mode::empty()).map_err(failed)?;
    let mut walk =
        Walk { hasher: Hasher::new(Algorithm::Sha256), linked: BTreeMap::new(), buffer: vec![0; BUFFER] };
    let stat = rustix::fs::fstat(&fd).map_err(failed)?;
    walk.entry(b"", &stat);
    walk.attributes_of(&fd).map_err(failed)?;
    walk.folder(&fd, 0).map_err(failed)?;
    Ok(walk.hasher.finish())
}

struct Walk {
    hasher: Hasher,
    /// Digests of files with several names, by inode: their bytes are read once.
    linked: BTreeMap<u64, Digest>,
    buffer: Vec<u8>,
}

impl Walk {
    fn folder(&mut self, fd: &OwnedFd, depth: usize) -> Result<(), Errno> {
        if depth > MAX_DEPTH {
            return Err(Errno::LOOP);
        }
        let mut names: Vec<CString> = Vec::new();
        for entry in Dir::read_from(fd)? {
            let name = entry?.file_name().to_owned();
            if name.as_c_str() != c"." && name.as_c_str() != c".." {
                names.push(name);
            }
        }
        names.sort();
        for name in &names {
            let stat = statat(fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
            self.entry(name.to_bytes(), &stat);
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    let child = openat(fd, name, FOLDER, Mode::empty())?;
                    self.attributes_of(&child)?;
                    self.folder(&child, depth + 1)?;
                }
                FileType::RegularFile => {
                    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NOATIME | OFlags::CLOEXEC;
                    let file = openat(fd, name, flags, Mode::empty())?;
                    self.attributes_of(&file)?;
                    let content = self.content(&file, &stat)?;
                    self.text(content.hex().as_bytes());
                }
                kind => {
                    if kind == FileType::Symlink {
                        self.text(readlinkat(fd, name, Vec::new())?.to_bytes());
                    }
                    self.attributes_at(fd, name)?;
                }
            }
        }
        // The end of a folder, which no entry can look like.
        self.number(u64::MAX);
        Ok(())
    }

    fn entry(&mut self, name: &[u8], stat: &Stat) {
        self.text(name);
        self.number(stat.st_mode.into());
        self.number(stat.st_uid.into());
        self.number(stat.st_gid.into());
        self.number(stat.st_rdev);
        // A folder's size is the filesystem's affair.
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            self.number(stat.st_size.cast_unsigned());
        }
        self.number(stat.st_mtime.cast_unsigned());
        self.number(stat.st_mtime_nsec);
    }

    fn content(&mut self, file: &OwnedFd, stat: &Stat) -> Result<Digest, Errno> {
        if let Some(known) = self.linked.get(&stat.st_ino) {
            return Ok(known.clone());
        }
        let mut hasher = Hasher::new(Algorithm::Sha256);
        loop {
            let count = read(file, &mut self.buffer[..])?;
            if count == 0 {
                break;
            }
            hasher.update(self.buffer.get(..count).unwrap_or_default());
        }
        let digest = hasher.finish();
        if stat.st_nlink > 1 {
            self.linked.insert(stat.st_ino, digest.clone());
        }
        Ok(digest)
    }

    fn attributes_of(&mut self, fd: &OwnedFd) -> Result<(), Errno> {
        let mut names = vec![0; MAX_XATTR];
        let listed = flistxattr(fd, &mut names[..]);
        self.attributes(names, listed, |name, value| fgetxattr(fd, name, value))
    }

    /// The same for what cannot be opened: by the folder's descriptor, and the name is not followed.
    fn attributes_at(&mut self, folder: &OwnedFd, name: &CStr) -> Result<(), Errno> {
        let mut path = format!("/proc/self/fd/{}/", folder.as_raw_fd()).into_bytes();
        path.extend_from_slice(name.to_bytes());
        let mut names = vec![0; MAX_XATTR];
        let listed = llistxattr(path.as_slice(), &mut names[..]);
        self.attributes(names, listed, |name, value| lgetxattr(path.as_slice(), name, value))
    }

    fn attributes(
        &mut self,
        mut names: Vec<u8>,
        listed: Result<usize, Errno>,
        get: impl Fn(&OsStr, &mut [u8]) -> Result<usize, Errno>,
    ) -> Result<(), Errno> {
        match listed {
            Ok(length) => names.truncate(length),
            Err(Errno::OPNOTSUPP) => names.clear(),
            Err(error) => return Err(error),
        }
        let mut names: Vec<&[u8]> = names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
        names.sort_unstable();
        let mut value = vec![0; if names.is_empty() { 0 } else { MAX_XATTR }];
        for name in names {
            let length = get(OsStr::from_bytes(name), &mut value)?;
            self.text(name);
            self.text(value.get(..length).unwrap_or_default());
        }
        self.number(0);
        Ok(())
    }

    /// With its length, so that what follows cannot be taken for a part of it.
    fn text(&mut self, text: &[u8]) {
        self.number(u64::try_from(text.len()).unwrap_or(u64::MAX));
        self.hasher.update(text);
    }

    fn number(&mut self, number: u64) {
        self.hasher.update(&number.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn every_change_shows_and_a_copy_of_names_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("fs");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/file"), "content").unwrap();
        fs::hard_link(root.join("a/file"), root.join("a/b/second")).unwrap();
        symlink("target", root.join("link")).unwrap();
        let first = tree_digest(&root).unwrap();
        assert_eq!(tree_digest(&root).unwrap(), first);

        let file = root.join("a/file");
        let time = |seconds| {
            let handle = fs::File::options().write(true).open(&file).unwrap();
            handle.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
        };
        time(1);
        let before = tree_digest(&root).unwrap();
        assert_ne!(before, first);
        fs::write(&file, "c0ntent").unwrap();
        time(1);
        assert_ne!(tree_digest(&root).unwrap(), before, "a byte");
        fs::write(&file, "content").unwrap();
        time(1);
        assert_eq!(tree_digest(&root).unwrap(), before);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o4755)).unwrap();
        assert_ne!(tree_digest(&root).unwrap(), before, "a mode");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        fs::remove_file(root.join("link")).unwrap();
        symlink("other!", root.join("link")).unwrap();
        assert_ne!(tree_digest(&root).unwrap(), before, "a link's target");
    }
}
