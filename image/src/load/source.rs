//! Access to the members of an archive in each of its forms: a folder, a tar file, a compressed tar file.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;

use crate::descriptor::Descriptor;
use crate::digest::Hasher;
use crate::error::Error;
use crate::store::{Inner, StagingFolder};
use crate::unpack::{MemberKind, Members, TreePath, decompressed};

const BUFFER: usize = 256 << 10;
/// The most members of an archive.
const MAX_MEMBERS: usize = 100_000;
/// The most bytes of their names.
const MAX_NAMES: usize = 16 << 20;
/// The most links from member to member, as old versions of docker write them.
const MAX_LINKS: usize = 8;
/// The offset of the magic in a tar file, and its first bytes (tar(5)).
const USTAR: (u64, &[u8]) = (257, b"ustar");

/// An archive of images.
#[derive(Debug)]
pub(super) struct Source {
    name: String,
    form: ArchiveForm,
}

#[derive(Debug)]
enum ArchiveForm {
    Folder(OwnedFd),
    Tar(Tar),
}

#[derive(Debug)]
struct Tar {
    file: Arc<File>,
    members: HashMap<TreePath, MemberLocation>,
    /// The staging folder with the decompressed file.
    _folder: Option<StagingFolder>,
}

#[derive(Clone, Debug)]
enum MemberLocation {
    File { offset: u64, length: u64 },
    Link(TreePath),
}

impl Source {
    /// Opens the archive at `path`. A compressed archive is decompressed into a staging folder of the store.
    pub(super) fn open(inner: &Arc<Inner>, path: &Path) -> Result<Self, Error> {
        let name = path.display().to_string();
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => Error::not_found(&name, "no such file"),
            _ => Error::io("open", path, error),
        };
        // Without O_NONBLOCK, opening a pipe would wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
        let stat = fstat(&fd).map_err(|error| failed(error.into()))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Ok(Self { name, form: ArchiveForm::Folder(fd) }),
            FileType::RegularFile => {
                let form = ArchiveForm::Tar(Tar::open(inner, &name, File::from(fd))?);
                Ok(Self { name, form })
            }
            _ => Err(Error::invalid(name, "neither a folder nor a file")),
        }
    }

    /// Returns whether the archive is a folder.
    pub(super) fn is_folder(&self) -> bool {
        matches!(self.form, ArchiveForm::Folder(_))
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Returns whether the archive has a member.
    pub(super) fn has(&self, member: &str) -> Result<bool, Error> {
        match self.open_member(member) {
            Ok(_content) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Returns the length of a member, in bytes.
    pub(super) fn length(&self, member: &str) -> Result<u64, Error> {
        self.content(member).map(|content| content.end - content.position)
    }

    /// Returns a reader of a member.
    pub(super) fn open_member(&self, member: &str) -> Result<BufReader<FileRange>, Error> {
        Ok(BufReader::with_capacity(BUFFER, self.content(member)?))
    }

    fn content(&self, member: &str) -> Result<FileRange, Error> {
        let missing = || Error::not_found(format!("{member} of {}", self.name), "not in the archive");
        let path = TreePath::parse(member.as_bytes()).filter(|path| !path.is_root()).ok_or_else(missing)?;
        match &self.form {
            ArchiveForm::Tar(tar) => {
                let (position, length) = tar.find(path).ok_or_else(missing)?;
                Ok(FileRange { file: tar.file.clone(), position, end: position.saturating_add(length) })
            }
            ArchiveForm::Folder(folder) => {
                let what = format!("{}/{member}", self.name);
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                let fd = match openat2(folder, path.as_path(), flags, Mode::empty(), resolve) {
                    Ok(fd) => fd,
                    Err(Errno::NOENT | Errno::NOTDIR) => return Err(missing()),
                    Err(error) => return Err(Error::io("open", what, error)),
                };
                let stat = fstat(&fd).map_err(|error| Error::io("read", &what, error))?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                    return Err(Error::corrupt(what, "not a regular file"));
                }
                let end = u64::try_from(stat.st_size).unwrap_or(0);
                Ok(FileRange { file: Arc::new(File::from(fd)), position: 0, end })
            }
        }
    }
}

impl Tar {
    fn open(inner: &Arc<Inner>, name: &str, file: File) -> Result<Self, Error> {
        let failed = |error| Error::io("read", name, error);
        let mut magic = [0; USTAR.1.len()];
        let is_tar = file.read_exact_at(&mut magic, USTAR.0).is_ok() && magic == *USTAR.1;
        let (file, folder) = if is_tar {
            (file, None)
        } else {
            let (file, folder) = decompress(inner, name, file)?;
            (file, Some(folder))
        };
        let members = members(name, &file)?;
        let length = file.metadata().map_err(failed)?.len();
        let whole = |member: &MemberLocation| match member {
            MemberLocation::File { offset, length: own } => offset.saturating_add(*own) <= length,
            MemberLocation::Link(_) => true,
        };
        if !members.values().all(whole) {
            return Err(Error::corrupt(name, "the archive is truncated"));
        }
        Ok(Self { file: Arc::new(file), members, _folder: folder })
    }

    fn find(&self, path: TreePath) -> Option<(u64, u64)> {
        let mut path = path;
        for _ in 0..MAX_LINKS {
            match self.members.get(&path)? {
                MemberLocation::File { offset, length } => return Some((*offset, *length)),
                MemberLocation::Link(target) => path = target.clone(),
            }
        }
        None
    }
}

/// Decompresses an archive into a file in a staging folder.
fn decompress(inner: &Arc<Inner>, name: &str, file: File) -> Result<(File, StagingFolder), Error> {
    let folder = StagingFolder::new(inner)?;
    let path = folder.path().join("archive.tar");
    let mut plain = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .map_err(|error| Error::io("create", &path, error))?;
    let limit = inner.options.limits.bytes;
    let broken = |error: io::Error| Error::corrupt(name, format!("not a tar archive, or corrupt: {error}"));
    let mut content =
        decompressed(BufReader::with_capacity(BUFFER, file), None).map_err(broken)?.take(limit + 1);
    let mut buffer = vec![0; BUFFER];
    let mut length = 0;
    loop {
        let read = content.read(&mut buffer).map_err(broken)?;
        if read == 0 {
            break;
        }
        length += u64::try_from(read).unwrap_or(u64::MAX);
        if length > limit {
            return Err(Error::limit(name, format!("larger than {limit} bytes after decompression")));
        }
        let piece = buffer.get(..read).unwrap_or_default();
        plain.write_all(piece).map_err(|error| Error::io("write", &path, error))?;
    }
    Ok((plain, folder))
}

/// Returns the members of a tar file by their names.
fn members(name: &str, file: &File) -> Result<HashMap<TreePath, MemberLocation>, Error> {
    let mut archive = Members::new(name, file);
    let mut members = HashMap::new();
    let mut names_left = MAX_NAMES;
    while let Some(entry) = archive.next()? {
        let Some(path) = TreePath::parse(&entry.name) else {
            return Err(Error::corrupt(
                name,
                format!("invalid member name {:?}", String::from_utf8_lossy(&entry.name)),
            ));
        };
        let member = match entry.kind {
            MemberKind::File { offset, length } => Some(MemberLocation::File { offset, length }),
            MemberKind::HardLink(target) => join(TreePath::default(), &target).map(MemberLocation::Link),
            MemberKind::Symlink(target) => {
                let folder = path.split().map(|(folder, _)| folder).unwrap_or_default();
                join(folder, &target).map(MemberLocation::Link)
            }
            MemberKind::Other => None,
        };
        let Some(member) = member else {
            continue;
        };
        let target = if let MemberLocation::Link(target) = &member { target.as_bytes().len() } else { 0 };
        names_left = names_left.checked_sub(path.as_bytes().len() + target).ok_or_else(|| {
            Error::limit(name, format!("the names of the members have more than {MAX_NAMES} bytes"))
        })?;
        members.insert(path, member);
        if members.len() > MAX_MEMBERS {
            return Err(Error::limit(name, format!("more than {MAX_MEMBERS} members")));
        }
    }
    Ok(members)
}

/// Returns the target of a relative link in the archive, or `None` if it leads out of the archive.
fn join(base: TreePath, target: &[u8]) -> Option<TreePath> {
    let mut path = base;
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => path = path.split()?.0,
            part => path = path.join(part),
        }
    }
    Some(path)
}

/// A range of a file.
#[derive(Debug)]
pub(super) struct FileRange {
    file: Arc<File>,
    position: u64,
    end: u64,
}

impl Read for FileRange {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.position).unwrap_or(usize::MAX);
        let length = left.min(buffer.len());
        let read = self.file.read_at(buffer.get_mut(..length).unwrap_or_default(), self.position)?;
        self.position += u64::try_from(read).unwrap_or(0);
        Ok(read)
    }
}

/// A reader that computes the digest of a blob. If the descriptor is known, `check` compares size and digest.
pub(super) struct VerifyingReader<R> {
    inner: R,
    expected: Option<(Hasher, Descriptor)>,
    length: u64,
}

impl<R: BufRead> VerifyingReader<R> {
    pub(super) fn new(inner: R, expected: Option<Descriptor>) -> Self {
        let expected = expected.map(|blob| (Hasher::new(blob.digest.algorithm()), blob));
        Self { inner, expected, length: 0 }
    }

    /// Checks the blob after its reader has finished. No data may be left.
    pub(super) fn check(mut self, what: &str) -> Result<(), Error> {
        let rest = self.fill_buf().map_err(|error| Error::io("read", what, error))?;
        if !rest.is_empty() {
            return Err(Error::corrupt(what, "data after the end of the compressed archive"));
        }
        let Some((hasher, blob)) = self.expected else {
            return Ok(());
        };
        if self.length != blob.size {
            return Err(Error::corrupt(what, format!("size is {} instead of {}", self.length, blob.size)));
        }
        let digest = hasher.finish();
        if digest != blob.digest {
            return Err(Error::corrupt(what, format!("digest is {digest} instead of {}", blob.digest)));
        }
        Ok(())
    }
}

impl<R: BufRead> Read for VerifyingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut available = self.fill_buf()?;
        let read = available.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

impl<R: BufRead> BufRead for VerifyingReader<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        // The buffer is not empty, so this makes no system call.
        if let (Some((hasher, _)), Ok(available)) = (&mut self.expected, self.inner.fill_buf()) {
            hasher.update(available.get(..amount).unwrap_or(available));
        }
        self.length = self.length.saturating_add(u64::try_from(amount).unwrap_or(u64::MAX));
        self.inner.consume(amount);
    }
}
