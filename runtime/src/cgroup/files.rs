//! Reads the files of a cgroup. A value is `None` if its controller or file does not exist.
//!
//! Statistics read several files of every cgroup. A folder is opened once, and a file costs three system calls: open,
//! read, close.

use std::cell::OnceCell;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{read as read_once, retry_on_intr};

use super::folder::Folder;
use super::interface::Interface;

/// The length up to which a file is read at once. The longest common one, `memory.stat`, has about 2 KiB.
const USUAL: usize = 8 << 10;

/// Reads the files of one cgroup.
#[derive(Debug)]
pub(super) struct Reader<'c> {
    pub(super) interface: Interface,
    folders: Vec<(&'c Folder, OnceCell<Option<OwnedFd>>)>,
}

impl<'c> Reader<'c> {
    pub(super) fn new(interface: Interface, folders: &'c [Folder]) -> Self {
        Self { interface, folders: folders.iter().map(|folder| (folder, OnceCell::new())).collect() }
    }

    /// Returns the folder of a controller.
    pub(super) fn folder(&self, controller: &str) -> Option<&'c Path> {
        self.folders
            .iter()
            .find(|(folder, _)| self.has(folder, controller))
            .map(|(folder, _)| folder.path.as_path())
    }

    /// Returns the text of a controller's file ([`read`]).
    pub(super) fn text(&self, controller: &str, file: &str) -> Option<String> {
        let (folder, opened) = self.folders.iter().find(|(folder, _)| self.has(folder, controller))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = opened.get_or_init(|| openat(CWD, &folder.path, flags, Mode::empty()).ok());
        read_at(opened.as_ref()?, file)
    }

    /// Returns the number in a controller's file ([`number`]).
    pub(super) fn number(&self, controller: &str, file: &str) -> Option<u64> {
        number(&self.text(controller, file)?)
    }

    fn has(&self, folder: &Folder, controller: &str) -> bool {
        self.interface == Interface::V2 || folder.has(controller)
    }
}

/// Returns the text of a file that the kernel shows as one record, as it does all counters and limits: a read that does
/// not fill the buffer has reached the end. Lists such as `cgroup.procs` have many records, and are not read here.
pub(super) fn read(path: &Path) -> Option<String> {
    read_at(CWD, path)
}

fn read_at(folder: impl AsFd, file: impl rustix::path::Arg) -> Option<String> {
    let file = openat(folder, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut buffer = [0_u8; USUAL];
    let mut text = Vec::new();
    loop {
        let length = retry_on_intr(|| read_once(&file, &mut buffer)).ok()?;
        text.extend_from_slice(buffer.get(..length)?);
        if length < USUAL {
            return String::from_utf8(text).ok();
        }
    }
}

/// Parses a number. `max` and -1, which mean that there is no limit, become `None`.
pub(super) fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// Returns the value of a line `key value`.
pub(super) fn value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Creates a folder with these files, in place of a cgroup.
#[cfg(test)]
pub(super) fn folder_with(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

/// Calls a function with a reader of a folder with these files. It has all controllers.
#[cfg(test)]
pub(super) fn with_files<T>(
    interface: Interface,
    files: &[(&str, &str)],
    test: impl FnOnce(&Reader<'_>) -> T,
) -> T {
    let place = folder_with(files);
    let controllers = ["cpu", "cpuacct", "memory", "pids", "blkio", "hugetlb", "freezer"];
    let (mount, path) = (place.path().to_owned(), place.path().to_owned());
    let folder = Folder { mount, path, controllers: controllers.map(str::to_owned).to_vec() };
    test(&Reader::new(interface, &[folder]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_every_length_are_read_completely() {
        for length in [0, 1, USUAL - 1, USUAL, USUAL + 1, 3 * USUAL] {
            let text = "x".repeat(length);
            let folder = folder_with(&[("file", &text)]);
            assert_eq!(read(&folder.path().join("file")), Some(text), "{length} bytes");
        }
        assert_eq!(read(Path::new("/nonexistent")), None);
        assert_eq!(read(Path::new("/")), None, "a folder has no text");
    }

    #[test]
    fn a_controller_of_version_1_has_its_own_folder() {
        let (memory, pids) = (folder_with(&[("value", "1\n")]), folder_with(&[("value", "max\n")]));
        let folder = |place: &tempfile::TempDir, controller: &str| {
            let (mount, path) = (place.path().to_owned(), place.path().to_owned());
            Folder { mount, path, controllers: vec![controller.to_owned()] }
        };
        let folders = [folder(&memory, "memory"), folder(&pids, "pids")];
        let v1 = Reader::new(Interface::V1, &folders);
        assert_eq!((v1.number("memory", "value"), v1.number("pids", "value")), (Some(1), None));
        assert_eq!(v1.text("pids", "value").as_deref(), Some("max\n"));
        assert_eq!((v1.text("cpu", "value"), v1.folder("cpu")), (None, None));
        let v2 = Reader::new(Interface::V2, &folders);
        assert_eq!(v2.number("cpu", "value"), Some(1));
    }
}
