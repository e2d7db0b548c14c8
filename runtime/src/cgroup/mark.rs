//! The mark of a daemon on the cgroups that it creates: an extended attribute (xattr(7)). The name of a cgroup does not
//! identify its creator, since other runtimes use the same names, and its parent is chosen by the client.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

/// The name of the attribute. Only processes with CAP_SYS_ADMIN can read and write attributes of this namespace.
const ATTRIBUTE: &str = "trusted.berth";

/// The longest mark in bytes: a number, a separator and a path (limits.h, `PATH_MAX`).
const LONGEST: usize = 4096 + 64;

/// The identity of a daemon: its root folder. Device and inode distinguish folders with the same path in different mount
/// namespaces. Cgroups do not survive a reboot, and neither does the number of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    text: String,
}

impl Mark {
    /// Returns the mark of the daemon with this root folder.
    ///
    /// # Errors
    /// The folder does not exist or cannot be read.
    pub fn of_root(root: &Path) -> io::Result<Self> {
        let path = fs::canonicalize(root)?;
        let stat = fs::metadata(&path)?;
        Ok(Self { text: format!("{}:{} {}", stat.dev(), stat.ino(), path.display()) })
    }

    /// Marks the folder of a cgroup. Without the mark the cgroup works, and is found by its name if its record is lost.
    pub(super) fn set(&self, folder: &Path) {
        if let Err(error) = rustix::fs::setxattr(folder, ATTRIBUTE, self.text.as_bytes(), XattrFlags::empty())
        {
            tracing::debug!(path = %folder.display(), %error, "failed to mark a cgroup");
        }
    }

    /// Returns the mark on the folder of a cgroup.
    pub(super) fn on(folder: &Path) -> Option<Self> {
        let mut value = [0_u8; LONGEST];
        let read: Result<usize, Errno> = rustix::fs::getxattr(folder, ATTRIBUTE, &mut value[..]);
        let text = String::from_utf8_lossy(value.get(..read.ok()?)?).into_owned();
        Some(Self { text })
    }

    /// Returns whether the folder of a cgroup has this mark.
    pub(super) fn is_on(&self, folder: &Path) -> bool {
        Self::on(folder).as_ref() == Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_with_different_roots_have_different_marks() {
        let folder = tempfile::tempdir().unwrap();
        let mark = |name: &str| {
            fs::create_dir_all(folder.path().join(name)).unwrap();
            Mark::of_root(&folder.path().join(name)).unwrap()
        };
        assert_eq!(mark("a"), mark("a"));
        assert_ne!(mark("a"), mark("b"));
        assert!(Mark::of_root(&folder.path().join("c")).is_err());
    }
}
