//! Paths inside a container's root filesystem. The kernel resolves them to descriptors inside that root, and only
//! the descriptors are used. A symbolic link in an image always points to something inside the image.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::sys::{Context, Result};

/// The maximum number of dangling links that are followed while a path is created. The kernel's limit is the same
/// (path_resolution(7)).
const MAX_LINKS: u32 = 40;

/// The root directory of a container.
#[derive(Debug)]
pub struct Root {
    directory: OwnedFd,
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

impl Root {
    /// Creates the root from a descriptor of its directory.
    #[must_use]
    pub fn new(directory: OwnedFd) -> Self {
        Self { directory }
    }

    fn openat2(&self, path: &str, flags: OFlags, resolve: ResolveFlags) -> rustix::io::Result<OwnedFd> {
        let resolve = resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = flags | OFlags::CLOEXEC;
        // EAGAIN: a component was renamed in the meantime, and `..` could have escaped (openat2(2)).
        for _attempt in 0..64 {
            match rustix::fs::openat2(&self.directory, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => {}
                result => return result,
            }
        }
        Err(Errno::AGAIN)
    }

    /// Returns a descriptor of a path that serves only as a location (`O_PATH`).
    ///
    /// # Errors
    /// `ENOENT` and other errors of openat2(2).
    pub fn resolve(&self, path: &str) -> Result<OwnedFd> {
        self.openat2(path, OFlags::PATH, ResolveFlags::empty()).on("openat2", path)
    }

    /// Opens the file at a path.
    ///
    /// # Errors
    /// `ENOENT` and other errors of openat2(2).
    pub fn open(&self, path: &str, flags: OFlags) -> Result<OwnedFd> {
        self.openat2(path, flags, ResolveFlags::empty()).on("openat2", path)
    }

    /// Returns a folder whose path contains no symbolic link. The kernel's own filesystems are mounted there, and
    /// an image must not redirect them (CVE-2019-19921 and its successors).
    ///
    /// # Errors
    /// `ELOOP` if the path contains a link.
    pub fn resolve_strictly(&self, path: &str) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        self.openat2(path, flags, ResolveFlags::NO_SYMLINKS).on("openat2", path)
    }

    /// Opens a regular file for reading. Rejects a device or a pipe without opening it.
    ///
    /// # Errors
    /// `ENOENT` and other errors of openat2(2), `EINVAL` if it is not a regular file.
    pub fn open_file(&self, path: &str) -> Result<OwnedFd> {
        let place = self.resolve(path)?;
        let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&place).on("fstat", path)?.st_mode);
        if !kind.is_file() {
            return Err(Errno::INVAL).on("open", format_args!("{path}, which is not a regular file"));
        }
        // The descriptor's path opens the same inode, even if the path refers to another file by now (proc(5),
        // fd).
        let again = crate::sys::fs::descriptor_path(place.as_fd());
        rustix::fs::open(again, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).on("open", path)
    }

    /// Returns the folder at a path. Creates it and its parents (mode 0755) if absent.
    ///
    /// # Errors
    /// A component is not a folder, or cannot be created.
    pub fn make_folder(&self, path: &str) -> Result<OwnedFd> {
        self.make_folder_within(path, MAX_LINKS)
    }

    fn make_folder_within(&self, path: &str, links: u32) -> Result<OwnedFd> {
        match self.openat2(path, OFlags::PATH | OFlags::DIRECTORY, ResolveFlags::empty()) {
            Err(Errno::NOENT) => {}
            result => return result.on("openat2", path),
        }
        let (parent, name) = split(path).ok_or(Errno::NOENT).on("mkdir", path)?;
        let folder = self.make_folder_within(parent, links)?;
        match rustix::fs::mkdirat(&folder, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                if let Some(target) = link_target(&folder, parent, name) {
                    let links = links.checked_sub(1).ok_or(Errno::LOOP).on("openat2", path)?;
                    return self.make_folder_within(&target, links);
                }
            }
            Err(errno) => return Err(errno).on("mkdir", path),
        }
        self.openat2(path, OFlags::PATH | OFlags::DIRECTORY, ResolveFlags::empty()).on("openat2", path)
    }

    /// Returns the location of a path. If it does not exist, creates an empty file there, and the folders above
    /// it.
    ///
    /// # Errors
    /// A component is not a folder, or cannot be created.
    pub fn make_file(&self, path: &str) -> Result<OwnedFd> {
        self.make_file_within(path, MAX_LINKS)
    }

    fn make_file_within(&self, path: &str, links: u32) -> Result<OwnedFd> {
        match self.openat2(path, OFlags::PATH, ResolveFlags::empty()) {
            Err(Errno::NOENT) => {}
            result => return result.on("openat2", path),
        }
        let (parent, name) = split(path).ok_or(Errno::NOENT).on("create", path)?;
        let folder = self.make_folder_within(parent, links)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&folder, name, flags, Mode::from_raw_mode(0o644)) {
            Ok(_created) => {}
            Err(Errno::EXIST) => {
                if let Some(target) = link_target(&folder, parent, name) {
                    let links = links.checked_sub(1).ok_or(Errno::LOOP).on("openat2", path)?;
                    return self.make_file_within(&target, links);
                }
            }
            Err(errno) => return Err(errno).on("create", path),
        }
        self.openat2(path, OFlags::PATH, ResolveFlags::empty()).on("openat2", path)
    }

    /// Returns the folder that contains a path's last component, created if absent, and that component.
    ///
    /// # Errors
    /// Those of [`Root::make_folder`], or `EINVAL` if the path has no last component.
    pub fn make_parent<'p>(&self, path: &'p str) -> Result<(OwnedFd, &'p str)> {
        let (parent, name) = split(path).ok_or(Errno::INVAL).on("openat2", path)?;
        Ok((self.make_folder(parent)?, name))
    }
}

/// Splits a path before its last component. Returns `None` for `/`, `.` and `..`, which cannot be created.
fn split(path: &str) -> Option<(&str, &str)> {
    let path = path.trim_end_matches('/');
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    let parent = if parent.is_empty() { "/" } else { parent };
    (!matches!(name, "" | "." | "..")).then_some((parent, name))
}

/// Returns the target of a dangling link as a path from the root, or `None` if there is no link.
fn link_target(folder: &OwnedFd, parent: &str, name: &str) -> Option<String> {
    let target = rustix::fs::readlinkat(folder, name, Vec::new()).ok()?.into_string().ok()?;
    if target.starts_with('/') { Some(target) } else { Some(format!("{parent}/{target}")) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    fn root(folder: &Path) -> Root {
        Root::new(crate::sys::mount::place(folder.to_str().unwrap()).unwrap())
    }

    #[test]
    fn links_stay_inside() {
        let folder = tempfile::tempdir().unwrap();
        let root = root(folder.path());
        symlink("/etc", folder.path().join("absolute")).unwrap();
        symlink("../../../../../../etc", folder.path().join("relative")).unwrap();
        for path in ["/absolute/passwd", "/relative/passwd", "/../../../../etc/passwd"] {
            assert_eq!(root.resolve(path).unwrap_err().errno, Errno::NOENT, "{path}");
        }
        root.make_file("/absolute/made").unwrap();
        assert!(folder.path().join("etc/made").is_file(), "a dangling link is followed inside the root");
        root.make_folder("/relative/sub/folder").unwrap();
        assert!(folder.path().join("etc/sub/folder").is_dir());
    }

    #[test]
    fn circular_links_are_an_error() {
        let folder = tempfile::tempdir().unwrap();
        symlink("b", folder.path().join("a")).unwrap();
        symlink("a", folder.path().join("b")).unwrap();
        assert_eq!(root(folder.path()).make_folder("/a/x").unwrap_err().errno, Errno::LOOP);
        assert_eq!(root(folder.path()).make_file("/b").unwrap_err().errno, Errno::LOOP);
    }

    #[test]
    fn resolve_strictly_follows_no_links() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("real")).unwrap();
        symlink("real", folder.path().join("proc")).unwrap();
        assert!(root(folder.path()).resolve_strictly("/real").is_ok());
        assert_eq!(root(folder.path()).resolve_strictly("/proc").unwrap_err().errno, Errno::LOOP);
    }

    #[test]
    fn only_regular_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            folder.path().join("pipe"),
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o644),
            0,
        )
        .unwrap();
        std::fs::write(folder.path().join("file"), "x").unwrap();
        assert_eq!(root(folder.path()).open_file("/pipe").unwrap_err().errno, Errno::INVAL);
        assert!(root(folder.path()).open_file("/file").is_ok());
    }
}
