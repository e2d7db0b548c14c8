//! The processes in a cgroup and in those below it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;

use super::{CgroupError, Result};
use crate::sys::fs::read_records;

/// The content of one cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// The processes in the cgroup itself.
    pub pids: Vec<i32>,
    /// The folders of the cgroups directly below.
    pub below: Vec<PathBuf>,
}

impl Members {
    /// Reads the content of a cgroup by its folder ([`super::Cgroup::process_folder`]). One that does not exist has none.
    ///
    /// # Errors
    /// The cgroup cannot be read.
    pub fn of(folder: &Path) -> Result<Self> {
        match read(folder) {
            Ok(members) => Ok(members),
            // ENODEV: the cgroup was removed after the folder was opened.
            Err(Errno::NOENT | Errno::NODEV) => Ok(Self::default()),
            Err(errno) => {
                let path = folder.join("cgroup.procs");
                Err(CgroupError::File { action: "read", path, source: errno.into() })
            }
        }
    }
}

fn read(folder: &Path) -> rustix::io::Result<Members> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = openat(CWD, folder, flags, Mode::empty())?;
    let text = read_records(&opened, "cgroup.procs")?;
    let pids = text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0).collect();
    let mut below = Vec::new();
    // A folder without folders in it has two links: its name and `.`. The kernel adds one for each folder in it (inode(7),
    // `st_nlink`; fs/kernfs/inode.c).
    if fstat(&opened)?.st_nlink != 2 {
        for entry in Dir::new(opened)?.flatten().filter(|entry| entry.file_type() == FileType::Directory) {
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                below.push(folder.join(OsStr::from_bytes(name)));
            }
        }
    }
    Ok(Members { pids, below })
}

/// Returns the processes in a folder and below. A folder that does not exist has none.
pub(super) fn processes(folder: &Path) -> Result<Vec<i32>> {
    let mut pids = Vec::new();
    let mut folders: Vec<PathBuf> = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let members = Members::of(&folder)?;
        pids.extend(members.pids);
        folders.extend(members.below);
    }
    Ok(pids)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn processes_of_all_cgroups_below_are_found() {
        let root = tempfile::tempdir().unwrap();
        let write = |folder: &str, text: &str| {
            fs::create_dir_all(root.path().join(folder)).unwrap();
            fs::write(root.path().join(folder).join("cgroup.procs"), text).unwrap();
        };
        write("", "1\n2\n");
        write("a", "");
        // 0 is a process of another PID namespace (cgroups(7)).
        write("a/b", "3\n0\n");
        write("c", "4\n");
        // A container that may create cgroups can name them with any bytes.
        let not_text = root.path().join("c").join(OsStr::from_bytes(b"\xff"));
        fs::create_dir(&not_text).unwrap();
        fs::write(not_text.join("cgroup.procs"), "5\n").unwrap();
        let members = Members::of(root.path()).unwrap();
        let mut below = members.below;
        below.sort();
        assert_eq!((members.pids, below), (vec![1, 2], vec![root.path().join("a"), root.path().join("c")]));
        let mut pids = processes(root.path()).unwrap();
        pids.sort_unstable();
        assert_eq!(pids, [1, 2, 3, 4, 5]);
        assert_eq!(processes(&root.path().join("none")).unwrap(), Vec::<i32>::new());
        fs::remove_file(root.path().join("c/cgroup.procs")).unwrap();
        fs::create_dir(root.path().join("c/cgroup.procs")).unwrap();
        let error = processes(root.path()).unwrap_err().to_string();
        assert!(error.starts_with("failed to read /") && error.contains("c/cgroup.procs: "), "{error}");
    }
}
