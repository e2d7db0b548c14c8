//! Unpacks one layer into an empty folder. Entries are created in their order, whiteouts in the form of
//! overlayfs, and the times of folders are set last.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::BufRead;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, fchmod,
    fchown, fsetxattr, ftruncate, futimens, linkat, lsetxattr, makedev, mkdirat, mknodat, openat, statat,
    symlinkat, utimensat,
};
use rustix::io::{Errno, pwrite, write};

use super::limits::Budget;
use super::path::TreePath;
use super::pax::Time;
use super::stream::LayerStream;
use super::tar::{Entry, Kind, TarReader};
use super::times::FolderTimes;
use super::tree::{Place, Tree, is_folder, is_whiteout};
use crate::digest::{Algorithm, Digest};
use crate::error::Error;

/// The prefix of a file that hides a name of the layers below (OCI image spec, layer, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";
/// The name of a file that hides all names of its folder in the layers below.
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
/// The prefix of other files of AUFS.
const AUFS: &[u8] = b".wh..wh.";
/// The prefixes of overlayfs's own attributes. In a layer they would redirect overlayfs to other folders
/// (`redirect`, `metacopy`).
const OVERLAY_XATTRS: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];
/// The mode with which pipes, devices and links are created. They get their mode after their owner.
const NO_MODE: Mode = Mode::empty();

/// The digest of an unpacked layer, and the parts of it that depend on the layers below.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The digest of the uncompressed archive.
    pub(crate) diff_id: Digest,
    /// The length of the uncompressed archive.
    pub(crate) length: u64,
    /// The folders that the layer does not list. Their metadata is that of the layers below, if they have
    /// them.
    pub(crate) implicit: BTreeSet<TreePath>,
    /// The hard links to files that the layer does not contain, with their targets.
    pub(crate) links: BTreeMap<TreePath, TreePath>,
}

struct Extraction<'a> {
    reader: TarReader<'a>,
    tree: Tree<'a>,
    folder_times: FolderTimes,
}

/// Unpacks `source` into the empty folder `root`, and reads it to its end. Writes the data that
/// [`super::rebuild`] needs to the file `recipe`.
pub(crate) fn extract(
    what: &str,
    source: impl BufRead,
    root: OwnedFd,
    algorithm: Algorithm,
    budget: &Budget,
    recipe: Option<File>,
) -> Result<Outcome, Error> {
    let stream = LayerStream::new(what, source, algorithm, budget, recipe)?;
    let mut extraction = Extraction {
        reader: TarReader::new(stream),
        tree: Tree::new(root, what, budget),
        folder_times: FolderTimes::default(),
    };
    while let Some(entry) = extraction.reader.next()? {
        extraction.entry(&entry)?;
    }
    let Extraction { reader, tree, folder_times } = extraction;
    set_folder_times(reader.what(), &tree, folder_times)?;
    let (diff_id, length) = reader.finish()?;
    let (implicit, links) = tree.dependencies.into_parts();
    Ok(Outcome { diff_id, length, implicit, links })
}

impl Extraction<'_> {
    fn entry(&mut self, entry: &Entry) -> Result<(), Error> {
        self.reader.budget().take_entry(self.reader.what())?;
        let path = self.path(&entry.name)?;
        let Some(place) = self.tree.place(&path)? else {
            return self.root(entry);
        };
        if place.name == OPAQUE_MARKER {
            let folder = place.path.split().map(|(folder, _)| folder).unwrap_or_default();
            return self.tree.make_opaque(&folder);
        }
        if place.name.starts_with(AUFS) {
            return Ok(());
        }
        if let Some(hidden) = place.name.strip_prefix(WHITEOUT) {
            return self.whiteout(&place, hidden);
        }
        self.tree.dependencies.drop_link(&place.path);
        match entry.kind {
            Kind::Directory => self.folder(&place, entry),
            Kind::File => self.file(&place, entry),
            Kind::HardLink => self.hard_link(&place, entry),
            Kind::Symlink => {
                let target = OsStr::from_bytes(&entry.link);
                self.create(&place, |place| symlinkat(target, place.fd(), place.name()))?;
                self.node_metadata(&place, entry, false)
            }
            Kind::Character | Kind::Block | Kind::Fifo => {
                let (kind, device) = match entry.kind {
                    Kind::Character => (FileType::CharacterDevice, entry.device),
                    Kind::Block => (FileType::BlockDevice, entry.device),
                    _ => (FileType::Fifo, (0, 0)),
                };
                let device = makedev(device.0, device.1);
                self.create(&place, |place| mknodat(place.fd(), place.name(), kind, NO_MODE, device))?;
                self.node_metadata(&place, entry, true)
            }
        }
    }

    fn path(&self, name: &[u8]) -> Result<TreePath, Error> {
        TreePath::parse(name).ok_or_else(|| {
            let why = format!(
                "the name {:?} is invalid or leads out of the layer",
                name.escape_ascii().to_string()
            );
            Error::corrupt(self.reader.what(), why)
        })
    }

    /// Handles the entry of the root folder itself.
    fn root(&mut self, entry: &Entry) -> Result<(), Error> {
        if entry.kind != Kind::Directory {
            return Err(Error::corrupt(self.reader.what(), "the root is not a folder"));
        }
        let path = TreePath::default();
        let fd = self.tree.open(&path).map_err(|error| self.tree.failed(&path, error))?;
        self.tree.dependencies.mark_listed(&path);
        self.metadata(&path, &fd, entry)?;
        self.folder_time(&path, entry)
    }

    fn folder_time(&mut self, path: &TreePath, entry: &Entry) -> Result<(), Error> {
        let added = self.folder_times.add(self.tree.root(), path, &timestamps(entry.mtime));
        added.map_err(|error| Error::io("record the times of folders of", self.reader.what(), error))
    }

    /// Creates a file at a place. An existing file is removed first: a later entry replaces an earlier one.
    fn create<T>(&mut self, place: &Place, create: impl Fn(&Place) -> Result<T, Errno>) -> Result<T, Error> {
        match create(place) {
            Err(Errno::EXIST) => {
                self.tree.remove(place)?;
                create(place).map_err(|error| self.tree.failed(&place.path, error))
            }
            other => other.map_err(|error| self.tree.failed(&place.path, error)),
        }
    }

    fn folder(&mut self, place: &Place, entry: &Entry) -> Result<(), Error> {
        let mut opaque = false;
        match mkdirat(place.fd(), place.name(), Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let stat = self.stat(place)?;
                if !is_folder(&stat) {
                    // A folder that follows a whiteout of its name hides the folder of the layers below.
                    opaque = is_whiteout(&stat);
                    self.tree.remove(place)?;
                    mkdirat(place.fd(), place.name(), Mode::RWXU)
                        .map_err(|error| self.tree.failed(&place.path, error))?;
                }
            }
            Err(error) => return Err(self.tree.failed(&place.path, error)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(place.fd(), place.name(), flags, Mode::empty())
            .map_err(|error| self.tree.failed(&place.path, error))?;
        self.metadata(&place.path, &fd, entry)?;
        if opaque {
            self.tree.make_opaque(&place.path)?;
        }
        self.tree.dependencies.mark_listed(&place.path);
        self.folder_time(&place.path, entry)
    }

    fn file(&mut self, place: &Place, entry: &Entry) -> Result<(), Error> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd =
            self.create(place, |place| openat(place.fd(), place.name(), flags, Mode::RUSR | Mode::WUSR))?;
        match &entry.sparse {
            None => {
                let mut length = 0_u64;
                loop {
                    let data = self.reader.data()?;
                    if data.is_empty() {
                        break;
                    }
                    let written = write(&fd, data).map_err(|error| self.tree.failed(&place.path, error))?;
                    self.reader.consume_content(written);
                    length = length.saturating_add(u64::try_from(written).unwrap_or(0));
                }
                self.reader.content(&place.path, length);
            }
            Some(sparse) => {
                let limit = self.reader.budget().limits.bytes;
                if sparse.size > limit {
                    let why = format!("{} has {} bytes, the limit is {limit}", place.path, sparse.size);
                    return Err(Error::limit(self.reader.what(), why));
                }
                // Holes take no disk space, but readers of the file read them as well.
                self.reader.budget().take_bytes(self.reader.what(), sparse.holes())?;
                for (offset, length) in &sparse.segments {
                    self.segment(place, &fd, *offset, *length)?;
                }
                ftruncate(&fd, sparse.size).map_err(|error| self.tree.failed(&place.path, error))?;
            }
        }
        self.metadata(&place.path, &fd, entry)?;
        let times = timestamps(entry.mtime);
        futimens(&fd, &times).map_err(|error| self.tree.failed(&place.path, error))
    }

    /// Writes one segment of a sparse file.
    fn segment(
        &mut self,
        place: &Place,
        fd: &OwnedFd,
        mut offset: u64,
        mut length: u64,
    ) -> Result<(), Error> {
        while length > 0 {
            let data = self.reader.data()?;
            let piece = data.get(..usize::try_from(length).unwrap_or(usize::MAX)).unwrap_or(data);
            if piece.is_empty() {
                return Err(Error::corrupt(self.reader.what(), format!("{}: missing data", place.path)));
            }
            let written = pwrite(fd, piece, offset).map_err(|error| self.tree.failed(&place.path, error))?;
            self.reader.consume(written);
            let written = u64::try_from(written).unwrap_or(u64::MAX);
            offset = offset.saturating_add(written);
            length = length.saturating_sub(written);
        }
        Ok(())
    }

    /// Creates a hard link within the layer. A link to a file of a lower layer is recorded, and created when
    /// both layers are stacked.
    fn hard_link(&mut self, place: &Place, entry: &Entry) -> Result<(), Error> {
        let target = self.path(&entry.link)?;
        if let Some(target_place) = self.tree.find(&target)? {
            if target_place.path == place.path {
                return Err(Error::corrupt(
                    self.reader.what(),
                    format!("{} is a link to itself", place.path),
                ));
            }
            let link = |place: &Place| {
                // Without AT_SYMLINK_FOLLOW, a link to a symbolic link is another name of the symbolic link.
                linkat(target_place.fd(), target_place.name(), place.fd(), place.name(), AtFlags::empty())
            };
            match link(place) {
                Err(Errno::NOENT) => {}
                Err(Errno::EXIST) => {
                    self.tree.remove(place)?;
                    return link(place).map_err(|error| self.tree.failed(&place.path, error));
                }
                Err(Errno::PERM) => {
                    let why = format!("{} is a link to {target}, which is a folder", place.path);
                    return Err(Error::corrupt(self.reader.what(), why));
                }
                other => return other.map_err(|error| self.tree.failed(&place.path, error)),
            }
        }
        self.tree.remove(place)?;
        self.tree.dependencies.add_link(place.path.clone(), target)
    }

    /// Hides a name of the layers below. If this layer has a file of that name, it stays (OCI image spec:
    /// whiteouts apply to lower layers only). If it is a folder, it becomes opaque.
    fn whiteout(&mut self, place: &Place, hidden: &[u8]) -> Result<(), Error> {
        if hidden.is_empty() || hidden == b"." || hidden == b".." {
            return Err(Error::corrupt(self.reader.what(), format!("invalid whiteout {}", place.path)));
        }
        let folder = place.path.split().map(|(folder, _)| folder).unwrap_or_default();
        let target = Place { name: hidden.to_vec(), path: folder.join(hidden), ..place.clone() };
        match mknodat(target.fd(), target.name(), FileType::CharacterDevice, NO_MODE, 0) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) if is_folder(&self.stat(&target)?) => {
                self.tree.dependencies.mark_listed(&target.path);
                self.tree.make_opaque(&target.path)
            }
            Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(self.tree.failed(&target.path, error)),
        }
    }

    fn stat(&self, place: &Place) -> Result<rustix::fs::Stat, Error> {
        statat(place.fd(), place.name(), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| self.tree.failed(&place.path, error))
    }

    /// Sets the owner first, then mode and attributes: changing the owner clears set-id bits and capabilities
    /// (chown(2)).
    fn metadata(&self, path: &TreePath, fd: &OwnedFd, entry: &Entry) -> Result<(), Error> {
        let failed = |error| self.tree.failed(path, error);
        let (owner, group) = owner(entry);
        fchown(fd, owner, group).map_err(failed)?;
        fchmod(fd, Mode::from_raw_mode(entry.mode)).map_err(failed)?;
        for (name, value) in self.xattrs(entry) {
            let set = fsetxattr(fd, OsStr::from_bytes(name), value, XattrFlags::empty());
            self.xattr_result(path, name, set)?;
        }
        Ok(())
    }

    /// Sets the metadata of a file that cannot be opened: a link, a device or a pipe.
    fn node_metadata(&self, place: &Place, entry: &Entry, has_mode: bool) -> Result<(), Error> {
        let failed = |error| self.tree.failed(&place.path, error);
        let (owner, group) = owner(entry);
        chownat(place.fd(), place.name(), owner, group, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        if has_mode {
            // chmod(2) follows links, but the file was just created and is not a link. No other process uses
            // the folder.
            chmodat(place.fd(), place.name(), Mode::from_raw_mode(entry.mode), AtFlags::empty())
                .map_err(failed)?;
        }
        for (name, value) in self.xattrs(entry) {
            // lsetxattrat does not exist before Linux 6.13. The folder is given by its descriptor, and the
            // name is not followed.
            let mut path = format!("/proc/self/fd/{}/", place.fd().as_raw_fd()).into_bytes();
            path.extend_from_slice(&place.name);
            let set = lsetxattr(path, OsStr::from_bytes(name), value, XattrFlags::empty());
            self.xattr_result(&place.path, name, set)?;
        }
        utimensat(place.fd(), place.name(), &timestamps(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed)
    }

    fn xattrs<'e>(&self, entry: &'e Entry) -> impl Iterator<Item = (&'e [u8], &'e [u8])> {
        let foreign = |name: &[u8]| !OVERLAY_XATTRS.iter().any(|prefix| name.starts_with(prefix));
        let pairs = entry.xattrs.iter().map(|(name, value)| (name.as_slice(), value.as_slice()));
        pairs.filter(move |(name, _)| foreign(name))
    }

    /// Ignores attributes that the filesystem does not support, or not for this type of file, as in
    /// containerd.
    fn xattr_result(&self, path: &TreePath, name: &[u8], set: Result<(), Errno>) -> Result<(), Error> {
        match set {
            Err(Errno::OPNOTSUPP) => {
                tracing::debug!(%path, xattr = %name.escape_ascii(), "filesystem does not support an attribute");
                Ok(())
            }
            Err(Errno::PERM) if name.starts_with(b"user.") => Ok(()),
            other => other.map_err(|error| self.tree.failed(path, error)),
        }
    }
}

fn set_folder_times(what: &str, tree: &Tree<'_>, times: FolderTimes) -> Result<(), Error> {
    times.for_each(what, |path, times| {
        // A later entry may have replaced the folder.
        match tree.open(path) {
            Ok(fd) => futimens(&fd, times).map_err(|error| tree.failed(path, error)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
            Err(error) => Err(tree.failed(path, error)),
        }
    })
}

fn owner(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
}

fn timestamps(time: Time) -> Timestamps {
    let time = Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

#[cfg(test)]
mod bounds;
#[cfg(test)]
mod tests;
