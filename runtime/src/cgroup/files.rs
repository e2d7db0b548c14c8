//! Reads the files of a cgroup. A value is `None` if its controller or file does not exist.
//!
//! Statistics read several files of every cgroup. A folder is opened once, and a file costs three system calls: open,
//! read, close.

use std::cell::OnceCell;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::folder::Folder;
use super::interface::Interface;
use crate::sys::fs::read_record;

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

    /// Returns whether the host has a controller. On v2 it may still be disabled in this cgroup.
    pub(super) fn has_controller(&self, controller: &str) -> bool {
        self.folders.iter().any(|(folder, _)| folder.hierarchy.has(controller))
    }

    /// Returns the text of a controller's file. All counters and limits are one record.
    pub(super) fn text(&self, controller: &str, file: &str) -> Option<String> {
        let (folder, opened) = self.folders.iter().find(|(folder, _)| self.has(folder, controller))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = opened.get_or_init(|| openat(CWD, &folder.path, flags, Mode::empty()).ok());
        read_record(opened.as_ref()?, file).ok()
    }

    /// Returns the number in a controller's file ([`number`]).
    pub(super) fn number(&self, controller: &str, file: &str) -> Option<u64> {
        number(&self.text(controller, file)?)
    }

    fn has(&self, folder: &Folder, controller: &str) -> bool {
        self.interface == Interface::V2 || folder.hierarchy.has(controller)
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
    test(&Reader::new(interface, &[in_place(place.path(), &controllers)]))
}

/// Returns the folder `path`, in place of one of a hierarchy with these controllers.
#[cfg(test)]
fn in_place(path: &Path, controllers: &[&str]) -> Folder {
    let controllers = controllers.iter().map(|&controller| controller.to_owned()).collect();
    let hierarchy = std::sync::Arc::new(super::hierarchy::Hierarchy { mount: path.to_owned(), controllers });
    Folder { hierarchy, path: path.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_of_version_1_has_its_own_folder() {
        let (memory, pids) = (folder_with(&[("value", "1\n")]), folder_with(&[("value", "max\n")]));
        let folders = [in_place(memory.path(), &["memory"]), in_place(pids.path(), &["pids"])];
        let v1 = Reader::new(Interface::V1, &folders);
        assert_eq!((v1.number("memory", "value"), v1.number("pids", "value")), (Some(1), None));
        assert_eq!(v1.text("pids", "value").as_deref(), Some("max\n"));
        assert_eq!((v1.text("cpu", "value"), v1.folder("cpu")), (None, None));
        let v2 = Reader::new(Interface::V2, &folders);
        assert_eq!(v2.number("cpu", "value"), Some(1));
    }
}
