//! The difference between a container's writable layer and its image, as a tar archive of what was added or changed and
//! a list of what was removed: the form that podman and CRI-O use in checkpoints (`rootfs-diff.tar`, `deleted.files`).
//!
//! The container does not run meanwhile, so nothing changes under the walk. Folders are entered only if they are folders
//! in the layer itself; symbolic links are never followed.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, lgetxattr, llistxattr};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tar::{Builder, EntryType, Header};

use crate::error::Error;

/// The prefix of overlayfs' own attributes (overlayfs.rst).
const OVERLAY: &[u8] = b"trusted.overlay.";
/// The attribute of a folder that hides the folders of the layers below.
const OPAQUE: &str = "trusted.overlay.opaque";
/// The prefix of an extended attribute in a pax header, as in image layers.
const PAX_ATTRIBUTE: &str = "SCHILY.xattr.";
/// The largest list and the largest value of extended attributes (xattr(7)).
const LARGEST_ATTRIBUTE: usize = 64 << 10;

/// A range of ids of a user namespace (user_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// The first id in the container.
    pub inside: u32,
    /// The first id on the host.
    pub outside: u32,
    /// The number of ids.
    pub length: u32,
}

/// A writable layer, the layers below it, and the ids of its container. Without ranges, the ids on disk are those of the
/// container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WritableDiff {
    /// The folder with what the container wrote.
    pub upper: PathBuf,
    /// The image's layers, the topmost first.
    pub lower: Vec<PathBuf>,
    /// The ranges of user ids.
    pub uids: Vec<IdRange>,
    /// The ranges of group ids.
    pub gids: Vec<IdRange>,
}

impl WritableDiff {
    /// Writes what was added or changed as a tar archive. Returns the paths that were removed, relative to the root, which
    /// may include paths below them that the image does not have. Sockets are left out: a tar archive cannot contain them.
    ///
    /// # Errors
    /// A file cannot be read, or the archive cannot be written.
    pub fn write(&self, out: impl Write) -> Result<Vec<String>, Error> {
        let mut walk =
            UpperWalk { diff: self, out: Builder::new(out), links: HashMap::new(), removed: Vec::new() };
        let mut folders = vec![PathBuf::new()];
        while let Some(folder) = folders.pop() {
            walk.folder(&folder, &mut folders)?;
        }
        let finished = walk.out.into_inner().and_then(|mut out| out.flush());
        finished.map_err(|error| Error::io("write", "rootfs-diff.tar", error))?;
        walk.removed.sort_unstable();
        Ok(walk.removed)
    }
}

struct UpperWalk<'a, W: Write> {
    diff: &'a WritableDiff,
    out: Builder<W>,
    /// Files with several names that are already in the archive, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
    removed: Vec<String>,
}

impl<W: Write> UpperWalk<'_, W> {
    /// Adds the content of a folder. Its folders are added to `folders`.
    fn folder(&mut self, folder: &Path, folders: &mut Vec<PathBuf>) -> Result<(), Error> {
        let path = self.diff.upper.join(folder);
        let failed = |error| Error::io("list", &path, error);
        let mut names = Vec::new();
        for entry in fs::read_dir(&path).map_err(failed)? {
            names.push(entry.map_err(failed)?.file_name());
        }
        names.sort_unstable();
        if is_opaque(&path)? {
            for name in self.names_below(folder) {
                if names.binary_search(&name).is_err() {
                    self.removed.push(folder.join(name).to_string_lossy().into_owned());
                }
            }
        }
        for name in names {
            let name = folder.join(name);
            if self.entry(&name)? {
                folders.push(name);
            }
        }
        Ok(())
    }

    /// Returns the names that the image's layers have in a folder.
    fn names_below(&self, folder: &Path) -> Vec<std::ffi::OsString> {
        let mut names: Vec<_> = self
            .diff
            .lower
            .iter()
            .filter_map(|layer| fs::read_dir(layer.join(folder)).ok())
            .flat_map(|entries| entries.flatten().map(|entry| entry.file_name()))
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Adds one entry. Returns whether it is a folder.
    fn entry(&mut self, name: &Path) -> Result<bool, Error> {
        let path = self.diff.upper.join(name);
        let stat = fs::symlink_metadata(&path).map_err(|error| Error::io("read", &path, error))?;
        let kind = stat.file_type();
        if kind.is_char_device() && stat.rdev() == 0 {
            self.removed.push(name.to_string_lossy().into_owned());
            return Ok(false);
        }
        if kind.is_socket() {
            return Ok(false);
        }
        let failed = |error: io::Error| Error::io("add to the archive", &path, error);
        let mut header = self.header(&stat);
        if !kind.is_dir() && stat.nlink() > 1 {
            if let Some(first) = self.links.get(&(stat.dev(), stat.ino())) {
                header.set_entry_type(EntryType::Link);
                header.set_size(0);
                self.out.append_link(&mut header, name, first).map_err(failed)?;
                return Ok(false);
            }
            self.links.insert((stat.dev(), stat.ino()), name.to_owned());
        }
        self.attributes(&path).map_err(failed)?;
        if kind.is_file() {
            self.file(header, name, &path, stat.size()).map_err(failed)?;
        } else if kind.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            let target = fs::read_link(&path).map_err(failed)?;
            self.out.append_link(&mut header, name, target).map_err(failed)?;
        } else {
            header.set_entry_type(special(&stat));
            set_device(&mut header, &stat).map_err(failed)?;
            self.out.append_data(&mut header, name, io::empty()).map_err(failed)?;
        }
        Ok(kind.is_dir())
    }

    fn header(&self, stat: &Metadata) -> Header {
        let mut header = Header::new_gnu();
        header.set_mode(stat.mode() & 0o7777);
        header.set_uid(inside(stat.uid(), &self.diff.uids).into());
        header.set_gid(inside(stat.gid(), &self.diff.gids).into());
        header.set_mtime(u64::try_from(stat.mtime()).unwrap_or(0));
        header.set_size(0);
        header
    }

    fn file(&mut self, mut header: Header, name: &Path, path: &Path, size: u64) -> io::Result<()> {
        // A FIFO in its place would block the open.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let flags = i32::try_from(flags.bits()).unwrap_or_default();
        let file = File::options().read(true).custom_flags(flags).open(path)?;
        header.set_entry_type(EntryType::Regular);
        header.set_size(size);
        // The archive stays valid if the file's length changes after all.
        let content = file.chain(io::repeat(0)).take(size);
        self.out.append_data(&mut header, name, content)
    }

    /// Adds a pax header with the extended attributes of the next entry.
    fn attributes(&mut self, path: &Path) -> io::Result<()> {
        let mut attributes = Vec::new();
        for name in attribute_names(path)? {
            let Ok(text) = std::str::from_utf8(name.as_bytes()) else { continue };
            if name.as_bytes().starts_with(OVERLAY) {
                continue;
            }
            let mut value = vec![0; LARGEST_ATTRIBUTE];
            let length = lgetxattr(path, text, &mut value[..])?;
            value.truncate(length);
            attributes.push((format!("{PAX_ATTRIBUTE}{text}"), value));
        }
        if attributes.is_empty() {
            return Ok(());
        }
        self.out
            .append_pax_extensions(attributes.iter().map(|(name, value)| (name.as_str(), value.as_slice())))
    }
}

fn attribute_names(path: &Path) -> io::Result<Vec<CString>> {
    let mut list = vec![0; LARGEST_ATTRIBUTE];
    let length = match llistxattr(path, &mut list[..]) {
        Err(Errno::NOTSUP) => 0,
        other => other?,
    };
    let names = list.get(..length).unwrap_or_default().split(|byte| *byte == 0);
    Ok(names.filter(|name| !name.is_empty()).filter_map(|name| CString::new(name).ok()).collect())
}

fn is_opaque(folder: &Path) -> Result<bool, Error> {
    let mut value = [0; 8];
    match lgetxattr(folder, OPAQUE, &mut value[..]) {
        Ok(length) => Ok(value.get(..length) == Some(b"y")),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(false),
        Err(errno) => Err(Error::io("read the attributes of", folder, errno)),
    }
}

fn special(stat: &Metadata) -> EntryType {
    let kind = stat.file_type();
    if kind.is_dir() {
        EntryType::Directory
    } else if kind.is_fifo() {
        EntryType::Fifo
    } else if kind.is_block_device() {
        EntryType::Block
    } else {
        EntryType::Char
    }
}

fn set_device(header: &mut Header, stat: &Metadata) -> io::Result<()> {
    let kind = stat.file_type();
    if kind.is_block_device() || kind.is_char_device() {
        header.set_device_major(rustix::fs::major(stat.rdev()))?;
        header.set_device_minor(rustix::fs::minor(stat.rdev()))?;
    }
    Ok(())
}

/// Returns an id as the container sees it. An id without a mapping stays as it is.
fn inside(id: u32, ranges: &[IdRange]) -> u32 {
    let mapped = ranges.iter().find_map(|range| {
        let offset = id.checked_sub(range.outside).filter(|offset| *offset < range.length)?;
        range.inside.checked_add(offset)
    });
    mapped.unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// Type, content and owner of each entry, by its name.
    type Entries = HashMap<String, (EntryType, Vec<u8>, u64)>;

    struct Layers {
        folder: tempfile::TempDir,
    }

    impl Layers {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir(folder.path().join("upper")).unwrap();
            fs::create_dir(folder.path().join("lower")).unwrap();
            Self { folder }
        }

        fn upper(&self, name: &str) -> PathBuf {
            self.folder.path().join("upper").join(name)
        }

        fn diff(&self) -> (Entries, Vec<String>) {
            let ranges = vec![IdRange { inside: 7, outside: 0, length: 10 }];
            let diff = WritableDiff {
                upper: self.folder.path().join("upper"),
                lower: vec![self.folder.path().join("lower")],
                uids: ranges.clone(),
                gids: ranges,
            };
            let mut archive = Vec::new();
            let removed = diff.write(&mut archive).unwrap();
            let mut entries = HashMap::new();
            for entry in tar::Archive::new(&archive[..]).entries().unwrap() {
                let mut entry = entry.unwrap();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                let name = entry.path().unwrap().display().to_string();
                let header = entry.header();
                entries.insert(name, (header.entry_type(), content, header.uid().unwrap()));
            }
            (entries, removed)
        }
    }

    #[test]
    fn files_folders_and_links_are_in_the_archive_with_the_ids_of_the_container() {
        let layers = Layers::new();
        fs::create_dir(layers.upper("d")).unwrap();
        fs::write(layers.upper("d/one"), "1").unwrap();
        fs::hard_link(layers.upper("d/one"), layers.upper("d/two")).unwrap();
        symlink("/etc/shadow", layers.upper("link")).unwrap();
        let (entries, removed) = layers.diff();
        let owner = u64::from(fs::metadata(layers.upper("d")).unwrap().uid()) + 7;
        assert_eq!(entries["d"], (EntryType::Directory, vec![], owner));
        assert_eq!(entries["d/one"], (EntryType::Regular, b"1".to_vec(), owner));
        assert_eq!(entries["d/two"].0, EntryType::Link);
        assert_eq!(entries["link"], (EntryType::Symlink, vec![], owner), "links are not followed");
        assert!(removed.is_empty());
    }

    #[test]
    fn long_names_and_sockets() {
        let layers = Layers::new();
        let long = format!("{}/{}", "a".repeat(200), "b".repeat(200));
        fs::create_dir(layers.upper(&"a".repeat(200))).unwrap();
        fs::write(layers.upper(&long), "x").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(layers.upper("s")).unwrap();
        let (entries, _) = layers.diff();
        assert_eq!(entries[&long].1, b"x");
        assert!(!entries.contains_key("s"));
    }

    #[test]
    fn an_id_without_a_mapping_stays() {
        let ranges = [IdRange { inside: 0, outside: 100_000, length: 65_536 }];
        assert_eq!([100_000, 165_535, 165_536, 0].map(|id| inside(id, &ranges)), [0, 65_535, 165_536, 0]);
        assert_eq!(inside(5, &[]), 5);
    }
}
