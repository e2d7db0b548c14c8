//! Log files of containers, in folders that containers may have mounted themselves (a volume of `/var/log`). A
//! container that can write there could replace a folder by a symbolic link to `/etc/cron.d`, or a file by a
//! device, and berth would write to it as root (CVE-2026-53489).
//!
//! Symbolic links in the path of a pod's log folder are the node administrator's, such as `/var/log` on another
//! disk. They are followed once, when the pod is run. From then on the path contains no links, and none are
//! followed.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::sys::fs::descriptor_path;
use crate::sys::{Context, Result};

const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// The maximum number of attempts to open a file that appears and disappears in the meantime: the kubelet renames
/// it.
const ATTEMPTS: u32 = 16;

/// Resolves the symbolic links in the path of a folder. Returns a path without links.
///
/// # Errors
/// The folder does not exist, or no path without links leads to it: it is not mounted in the caller's mount
/// namespace.
pub fn without_links(folder: &str) -> Result<String> {
    let followed = rustix::fs::openat(CWD, folder, FOLDER, Mode::empty()).on("open", folder)?;
    let path =
        rustix::fs::readlinkat(CWD, descriptor_path(followed.as_fd()), Vec::new()).on("readlink", folder)?;
    let path = path.into_string().map_err(|_| Errno::ILSEQ).on("readlink", folder)?;
    let reached = open_folder(&path)?;
    let identity =
        |fd: &OwnedFd| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino)).on("fstat", folder);
    if identity(&followed)? != identity(&reached)? {
        return Err(Errno::XDEV).on("open", format_args!("{folder}: no path without links leads to it"));
    }
    Ok(path)
}

/// Creates a folder and its parents if they are absent. The path must be absolute and must not contain a symbolic
/// link.
///
/// # Errors
/// `ENOTDIR` if a component is a link or anything else than a folder, or the error of the creation.
pub fn make_folder(path: &str) -> Result<()> {
    let mut place = open_folder("/")?;
    for name in path.split('/').filter(|name| !matches!(*name, "" | ".")) {
        if name == ".." {
            return Err(Errno::INVAL).on("mkdir", path);
        }
        place = match open_in(&place, name) {
            Err(Errno::NOENT) => {
                match rustix::fs::mkdirat(&place, name, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno).on("mkdir", format_args!("{path}: {name}")),
                }
                open_in(&place, name)
            }
            opened => opened,
        }
        .on("open", format_args!("{path}: {name}"))?;
    }
    Ok(())
}

fn open_in(folder: &OwnedFd, name: &str) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(folder, name, FOLDER | OFlags::NOFOLLOW, Mode::empty())
}

/// Opens a log file for appending, and creates it if absent. The path must not contain a symbolic link.
///
/// # Errors
/// The folder does not exist, or the file is not a regular file with exactly one name: a link, a pipe, a device,
/// or a file with another hard link.
pub fn open_file(path: &str) -> Result<OwnedFd> {
    let (folder, name) = path.rsplit_once('/').ok_or(Errno::INVAL).on("open", path)?;
    if matches!(name, "" | "." | "..") {
        return Err(Errno::INVAL).on("open", path);
    }
    let folder = open_folder(if folder.is_empty() { "/" } else { folder })?;
    let append = OFlags::WRONLY | OFlags::APPEND | OFlags::NONBLOCK | OFlags::CLOEXEC;
    for _attempt in 0..ATTEMPTS {
        let new = append | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        match rustix::fs::openat(&folder, name, new, Mode::from_raw_mode(0o640)) {
            Err(Errno::EXIST) => {}
            result => return result.on("open", path),
        }
        // It is checked before it is opened, because the open alone of a device can have an effect.
        let place = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let place = match rustix::fs::openat(&folder, name, place, Mode::empty()) {
            Err(Errno::NOENT) => continue,
            opened => opened.on("open", path)?,
        };
        let stat = rustix::fs::fstat(&place).on("fstat", path)?;
        match (FileType::from_raw_mode(stat.st_mode), stat.st_nlink) {
            (FileType::RegularFile, 0) => {}
            // Opened by its descriptor, so that it is this file even if the path refers to another one by now
            // (proc(5), fd).
            (FileType::RegularFile, 1) => {
                return rustix::fs::openat(CWD, descriptor_path(place.as_fd()), append, Mode::empty())
                    .on("open", path);
            }
            (FileType::RegularFile, _) => {
                return Err(Errno::MLINK).on("open", format_args!("{path}, which has another hard link"));
            }
            _ => return Err(Errno::INVAL).on("open", format_args!("{path}, which is not a regular file")),
        }
    }
    Err(Errno::AGAIN).on("open", path)
}

fn open_folder(path: &str) -> Result<OwnedFd> {
    rustix::fs::openat2(CWD, path, FOLDER, Mode::empty(), ResolveFlags::NO_SYMLINKS).on("openat2", path)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{FileTypeExt, symlink};
    use std::path::Path;

    use super::*;

    fn text(path: &Path) -> &str {
        path.to_str().unwrap()
    }

    fn append(path: &Path) -> Result<()> {
        let file = open_file(text(path))?;
        rustix::io::write(&file, b"line\n").on("write", "").map(drop)
    }

    #[test]
    fn a_log_is_created_and_appended_to() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("c/0.log");
        make_folder(text(&folder.path().join("c"))).unwrap();
        append(&log).unwrap();
        append(&log).unwrap();
        assert_eq!(fs::read_to_string(&log).unwrap(), "line\nline\n");
        assert_eq!(append(&folder.path().join("d/0.log")).unwrap_err().errno, Errno::NOENT);
    }

    #[test]
    fn links_of_the_folder_are_followed_once() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().join("disk/log");
        fs::create_dir_all(&real).unwrap();
        symlink("disk", folder.path().join("var")).unwrap();
        symlink("log", folder.path().join("disk/link")).unwrap();
        let settled = without_links(text(&folder.path().join("var/link/"))).unwrap();
        assert_eq!(settled, text(&fs::canonicalize(&real).unwrap()));
        append(&Path::new(&settled).join("log")).unwrap();
        fs::rename(&real, folder.path().join("disk/moved")).unwrap();
        symlink("/etc", &real).unwrap();
        assert_eq!(append(&Path::new(&settled).join("log")).unwrap_err().errno, Errno::LOOP);
        assert!(without_links(text(&folder.path().join("none"))).is_err());
    }

    #[test]
    fn no_folder_is_created_through_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (logs, elsewhere) = (folder.path().join("logs"), folder.path().join("elsewhere"));
        fs::create_dir_all(&logs).unwrap();
        fs::create_dir_all(&elsewhere).unwrap();
        symlink(&elsewhere, logs.join("link")).unwrap();
        for path in ["link/c", "link", "../elsewhere/c"] {
            assert!(make_folder(text(&logs.join(path))).is_err(), "{path}");
        }
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
        make_folder(text(&logs.join("a//./b/"))).unwrap();
        make_folder(text(&logs.join("a/c"))).unwrap();
        assert!(logs.join("a/b").is_dir() && logs.join("a/c").is_dir());
    }

    #[test]
    fn only_a_regular_file_with_one_name_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let (log, victim) = (folder.path().join("0.log"), folder.path().join("victim"));
        fs::write(&victim, "").unwrap();
        let make: [(&str, &dyn Fn()); 5] = [
            ("a link", &|| symlink(&victim, &log).unwrap()),
            ("a link to nothing", &|| symlink(folder.path().join("new"), &log).unwrap()),
            ("a second name", &|| fs::hard_link(&victim, &log).unwrap()),
            ("a pipe", &|| {
                let mode = Mode::from_raw_mode(0o600);
                rustix::fs::mknodat(CWD, &log, FileType::Fifo, mode, 0).unwrap();
            }),
            ("a folder", &|| fs::create_dir(&log).unwrap()),
        ];
        for (what, make) in make {
            make();
            assert!(append(&log).is_err(), "{what}");
            let _removed = fs::remove_file(&log).or_else(|_| fs::remove_dir(&log));
        }
        assert_eq!(fs::read_to_string(&victim).unwrap(), "");
        assert!(!folder.path().join("new").exists());
        append(&log).unwrap();
    }

    #[test]
    fn a_device_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("0.log");
        let device = rustix::fs::makedev(1, 3);
        let mode = Mode::from_raw_mode(0o600);
        // Only root may create a device.
        if rustix::fs::mknodat(CWD, &log, FileType::CharacterDevice, mode, device).is_ok() {
            assert!(append(&log).unwrap_err().to_string().contains("not a regular file"));
            assert!(fs::metadata(&log).unwrap().file_type().is_char_device());
        }
    }

    proptest::proptest! {
        #[test]
        fn a_folder_is_created_only_at_its_path(below in "[a./]{0,12}") {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("inside").join(below.trim_start_matches('/'));
            let result = make_folder(text(&path));
            proptest::prop_assert_eq!(result.is_err(), below.split('/').any(|name| name == ".."));
            proptest::prop_assert!(result.is_err() || path.is_dir());
            proptest::prop_assert!(fs::read_dir(folder.path()).unwrap().all(|entry| entry.unwrap().file_name() == "inside"));
        }
    }
}
