//! The digest of a folder's content: names, types, owners, modes, times, attributes and bytes. Any later
//! change of a layer changes the digest. The format is private: digests are only compared with those that the
//! same code has recorded.
//!
//! A layer is untrusted and may have any number of entries in a folder. So entries are not sorted: each has
//! its own digest, and the sum of the digests does not depend on the order of the filesystem. The digest
//! detects accidents, not an attacker who can write to the store.
//!
//! Of a sparse file only the data is read, so that a layer cannot make this take long.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, SeekFrom, Stat, fgetxattr, flistxattr, lgetxattr, llistxattr,
    openat, readlinkat, seek, statat,
};
use rustix::io::{Errno, pread};
use sha2::{Digest as _, Sha256};

use crate::digest::{Algorithm, Digest};
use crate::error::Error;

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// The block size in which files are read. The digest depends on it.
const BUFFER: usize = 256 << 10;
/// The largest list of names and the largest value of attributes (xattr(7)).
const MAX_XATTR: usize = 64 << 10;
/// A limit on the depth that no layer reaches: a layer's depth is limited when it is unpacked.
const MAX_DEPTH: usize = 4096;
/// The most files with several names whose digests are cached: about 4 MiB.
const MAX_LINKED: usize = 1 << 16;

type Hash = [u8; 32];

/// Computes the digest of a folder and everything below it. `None` if `is_cancelled` returns true.
pub(super) fn tree_digest(root: &Path, is_cancelled: &dyn Fn() -> bool) -> Result<Option<Digest>, Error> {
    let failed = |error| Error::io("compute the digest of", root, error);
    match digest(root, is_cancelled) {
        Ok(digest) => Ok(Some(digest)),
        Err(Errno::CANCELED) => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

fn digest(root: &Path, is_cancelled: &dyn Fn() -> bool) -> Result<Digest, Errno> {
    let fd = rustix::fs::open(root, FOLDER, Mode::empty())?;
    let mut walk = Walk {
        is_cancelled,
        linked: HashMap::new(),
        buffer: vec![0; BUFFER],
        names: vec![0; MAX_XATTR],
        value: vec![0; MAX_XATTR],
    };
    let stat = rustix::fs::fstat(&fd)?;
    let mut record = EntryHash::new(b"", &stat);
    walk.attributes_of(&fd, &mut record)?;
    record.bytes(&walk.folder(fd, 0)?);
    Ok(Digest::of(Algorithm::Sha256, &record.finish()))
}

/// The hash of one entry of a folder.
struct EntryHash(Sha256);

impl EntryHash {
    fn new(name: &[u8], stat: &Stat) -> Self {
        let mut record = Self(Sha256::new());
        record.text(name);
        record.number(stat.st_mode.into());
        record.number(stat.st_uid.into());
        record.number(stat.st_gid.into());
        record.number(stat.st_rdev);
        // The size of a folder depends on the filesystem.
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            record.number(stat.st_size.cast_unsigned());
        }
        record.number(stat.st_mtime.cast_unsigned());
        record.number(stat.st_mtime_nsec);
        record
    }

    /// Adds a text with its length, so that it cannot be confused with what follows.
    fn text(&mut self, text: &[u8]) {
        self.number(u64::try_from(text.len()).unwrap_or(u64::MAX));
        self.bytes(text);
    }

    fn number(&mut self, number: u64) {
        self.bytes(&number.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(self) -> Hash {
        self.0.finalize().into()
    }
}

/// The sum of digests, as numbers of 256 bits.
#[derive(Default)]
struct Sum {
    total: Hash,
    count: u64,
}

impl Sum {
    fn add(&mut self, hash: &Hash) {
        let mut carry = 0_u16;
        for (total, byte) in self.total.iter_mut().zip(hash) {
            let [low, high] = (u16::from(*total) + u16::from(*byte) + carry).to_le_bytes();
            *total = low;
            carry = high.into();
        }
        self.count += 1;
    }

    fn finish(&self) -> Hash {
        let mut record = EntryHash(Sha256::new());
        record.bytes(&self.total);
        record.number(self.count);
        record.finish()
    }
}

struct Walk<'a> {
    is_cancelled: &'a dyn Fn() -> bool,
    /// The digests of files with several names, by inode: their bytes are read once.
    linked: HashMap<u64, Hash>,
    buffer: Vec<u8>,
    names: Vec<u8>,
    value: Vec<u8>,
}

impl Walk<'_> {
    fn folder(&mut self, fd: OwnedFd, depth: usize) -> Result<Hash, Errno> {
        if depth > MAX_DEPTH {
            return Err(Errno::LOOP);
        }
        let mut sum = Sum::default();
        let mut folder = Dir::new(fd)?;
        while let Some(entry) = folder.read() {
            let entry = entry?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                sum.add(&self.entry(folder.fd()?, name, depth)?);
            }
        }
        Ok(sum.finish())
    }

    fn entry(&mut self, folder: BorrowedFd<'_>, name: &CStr, depth: usize) -> Result<Hash, Errno> {
        if (self.is_cancelled)() {
            return Err(Errno::CANCELED);
        }
        let stat = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let mut record = EntryHash::new(name.to_bytes(), &stat);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let child = openat(folder, name, FOLDER, Mode::empty())?;
                self.attributes_of(&child, &mut record)?;
                record.bytes(&self.folder(child, depth + 1)?);
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NOATIME | OFlags::CLOEXEC;
                let file = openat(folder, name, flags, Mode::empty())?;
                self.attributes_of(&file, &mut record)?;
                record.bytes(&self.content(&file, &stat)?);
            }
            kind => {
                if kind == FileType::Symlink {
                    record.text(readlinkat(folder, name, Vec::new())?.to_bytes());
                }
                self.attributes_at(folder, name, &mut record)?;
            }
        }
        Ok(record.finish())
    }

    fn content(&mut self, file: &OwnedFd, stat: &Stat) -> Result<Hash, Errno> {
        if let Some(cached) = self.linked.get(&stat.st_ino) {
            return Ok(*cached);
        }
        let mut hasher = Sha256::new();
        let mut position = 0;
        while let Some(start) = data_after(file, position)? {
            // Whole aligned blocks are hashed, so the digest does not depend on where the filesystem has
            // holes.
            position = start - start % u64::try_from(self.buffer.len()).unwrap_or(u64::MAX);
            let count = self.block(file, position)?;
            if count == 0 {
                break;
            }
            let block = self.buffer.get(..count).unwrap_or_default();
            if block.iter().any(|byte| *byte != 0) {
                hasher.update(position.to_le_bytes());
                hasher.update(block);
            }
            position += u64::try_from(count).unwrap_or(u64::MAX);
        }
        let hash = hasher.finalize().into();
        if stat.st_nlink > 1 {
            if self.linked.len() >= MAX_LINKED {
                // These files are read again if they have further names.
                self.linked.clear();
            }
            self.linked.insert(stat.st_ino, hash);
        }
        Ok(hash)
    }

    /// Fills the buffer from a position in a file. It is only filled partly at the end of the file.
    fn block(&mut self, file: &OwnedFd, position: u64) -> Result<usize, Errno> {
        if (self.is_cancelled)() {
            return Err(Errno::CANCELED);
        }
        let mut done = 0;
        while let Some(rest) = self.buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let count = pread(file, rest, position + u64::try_from(done).unwrap_or(0))?;
            if count == 0 {
                break;
            }
            done += count;
        }
        Ok(done)
    }

    fn attributes_of(&mut self, fd: impl AsFd, record: &mut EntryHash) -> Result<(), Errno> {
        let listed = flistxattr(&fd, &mut self.names[..]);
        self.attributes(listed, record, |name, value| fgetxattr(&fd, name, value))
    }

    /// Adds the attributes of a file that cannot be opened. The folder is given by its descriptor, and the
    /// name is not followed.
    fn attributes_at(
        &mut self,
        folder: BorrowedFd<'_>,
        name: &CStr,
        record: &mut EntryHash,
    ) -> Result<(), Errno> {
        let mut path = format!("/proc/self/fd/{}/", folder.as_raw_fd()).into_bytes();
        path.extend_from_slice(name.to_bytes());
        let listed = llistxattr(path.as_slice(), &mut self.names[..]);
        self.attributes(listed, record, |name, value| lgetxattr(path.as_slice(), name, value))
    }

    fn attributes(
        &mut self,
        listed: Result<usize, Errno>,
        record: &mut EntryHash,
        get: impl Fn(&OsStr, &mut [u8]) -> Result<usize, Errno>,
    ) -> Result<(), Errno> {
        let length = match listed {
            Ok(length) => length,
            Err(Errno::OPNOTSUPP) => 0,
            Err(error) => return Err(error),
        };
        let names = self.names.get(..length).unwrap_or_default();
        let mut names: Vec<&[u8]> = names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
        names.sort_unstable();
        for name in names {
            let length = get(OsStr::from_bytes(name), &mut self.value)?;
            record.text(name);
            record.text(self.value.get(..length).unwrap_or_default());
        }
        record.number(0);
        Ok(())
    }
}

/// Returns the position of the next data of a file (lseek(2), `SEEK_DATA`). A filesystem without support for
/// holes reports that everything is data.
fn data_after(file: &OwnedFd, position: u64) -> Result<Option<u64>, Errno> {
    match seek(file, SeekFrom::Data(position)) {
        Ok(start) => Ok(Some(start)),
        Err(Errno::NXIO) => Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(position)),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Seek as _, Write as _};
    use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
    use std::time::{Duration, SystemTime};

    use super::*;

    fn tree_digest(root: &Path) -> Result<Digest, Error> {
        super::tree_digest(root, &|| false).map(Option::unwrap)
    }

    #[test]
    fn holes_are_not_read_and_do_not_change_the_digest() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str, fill: &dyn Fn(&fs::File)| {
            let root = folder.path().join(name);
            fs::create_dir(&root).unwrap();
            let file = fs::File::create(root.join("file")).unwrap();
            fill(&file);
            file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
            fs::File::open(&root).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
            tree_digest(&root).unwrap()
        };
        let length = 10 << 20;
        let sparse = make("sparse", &|file| {
            file.set_len(length).unwrap();
            file.write_all_at(b"here", 5_000_000).unwrap();
        });
        let dense = make("dense", &|mut file| {
            file.write_all(&vec![0; usize::try_from(length).unwrap()]).unwrap();
            file.seek(std::io::SeekFrom::Start(5_000_000)).unwrap();
            file.write_all(b"here").unwrap();
        });
        assert_eq!(sparse, dense);
        let elsewhere = make("elsewhere", &|file| {
            file.set_len(length).unwrap();
            file.write_all_at(b"here", 5_000_001).unwrap();
        });
        assert_ne!(sparse, elsewhere);
        // 15 TiB, the longest file of ext4.
        make("huge", &|file| file.set_len(15 << 40).unwrap());
    }

    #[test]
    fn it_can_be_cancelled() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), "a").unwrap();
        assert_eq!(super::tree_digest(folder.path(), &|| true).unwrap(), None);
    }

    #[test]
    fn every_change_changes_the_digest() {
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

    #[test]
    fn the_order_of_a_folder_does_not_change_the_digest_but_names_do() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str, files: &[(&str, &str)]| {
            let root = folder.path().join(name);
            for (file, text) in files {
                let path = root.join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(&path, text).unwrap();
                let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
                fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
            }
            for place in ["a", "b", ""] {
                let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
                fs::File::open(root.join(place)).unwrap().set_modified(time).unwrap();
            }
            tree_digest(&root).unwrap()
        };
        let one = make("one", &[("a/1", "x"), ("a/2", "y"), ("b/1", "z")]);
        assert_eq!(make("two", &[("b/1", "z"), ("a/2", "y"), ("a/1", "x")]), one);
        assert_ne!(make("three", &[("a/1", "y"), ("a/2", "x"), ("b/1", "z")]), one, "contents are exchanged");
        assert_ne!(make("four", &[("a/1", "x"), ("b/2", "y"), ("b/1", "z")]), one, "a file is elsewhere");
    }
}
