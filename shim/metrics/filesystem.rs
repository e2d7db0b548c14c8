//! The filesystem of the writable layers: its size, its inodes and its block device.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::collector::Collector;
use super::descriptors::{FS_INODES, FS_INODES_FREE, FS_LIMIT, FS_USAGE};
use crate::stats::once::OncePerKey;

/// The size and use of a filesystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filesystem {
    device: String,
    bytes: u64,
    inodes: u64,
    inodes_free: u64,
}

impl Filesystem {
    /// Reads the filesystem that contains `folder`.
    pub(super) fn of(folder: &Path) -> Option<Self> {
        let sizes = rustix::fs::statvfs(folder).ok()?;
        Some(Self {
            device: device_of(folder)?,
            bytes: sizes.f_blocks.saturating_mul(sizes.f_frsize),
            inodes: sizes.f_files,
            inodes_free: sizes.f_ffree,
        })
    }

    /// Adds the metrics of a container that uses `bytes` of this filesystem, if that is known.
    pub(super) fn add(&self, collector: &mut Collector, bytes: Option<u64>) {
        let device = [self.device.as_str()];
        collector.add_with(&FS_USAGE, device, bytes);
        collector.add_with(&FS_LIMIT, device, self.bytes);
        collector.add_with(&FS_INODES, device, self.inodes);
        collector.add_with(&FS_INODES_FREE, device, self.inodes_free);
    }
}

/// Returns the block device of the filesystem that contains `folder`. A filesystem such as btrfs has a device number
/// that belongs to no block device; then the source of its mount is returned.
fn device_of(folder: &Path) -> Option<String> {
    let number = fs::metadata(folder).ok()?.dev();
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    block_device(major, minor).or_else(|| {
        let folder = fs::canonicalize(folder).ok()?;
        source_of(&fs::read_to_string("/proc/self/mountinfo").ok()?, &folder)
    })
}

/// The names of block devices by their numbers, each of which is looked up once per request.
#[derive(Debug, Default)]
pub(super) struct DeviceNames(OncePerKey<(u32, u32), String>);

impl DeviceNames {
    /// Returns the path of a block device, or its number if the kernel does not list it.
    pub(super) fn of(&self, major: u32, minor: u32) -> String {
        let name = || block_device(major, minor).unwrap_or_else(|| format!("{major}:{minor}"));
        self.0.get((major, minor), name)
    }
}

fn block_device(major: u32, minor: u32) -> Option<String> {
    let device = fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    // sysfs replaces the slash in names such as `cciss/c0d0`.
    Some(format!("/dev/{}", device.file_name()?.to_str()?.replace('!', "/")))
}

/// Returns the source of the mount that contains `folder` (proc_pid_mountinfo(5)): of the mounts above it, the last
/// one with the longest mount point.
fn source_of(mountinfo: &str, folder: &Path) -> Option<String> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let point = Path::new(mount.split(' ').nth(4)?);
        let source = filesystem.split(' ').nth(1)?;
        folder.starts_with(point).then(|| (point.components().count(), source))
    });
    mounts.max_by_key(|(depth, _)| *depth).map(|(_, source)| source.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_and_last_mount_contains_a_folder() {
        let mountinfo = "\
            27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
            40 27 0:40 /sub /var/lib rw shared:1 - btrfs /dev/sdb1 rw\n\
            41 40 0:41 / /var/lib rw - btrfs /dev/sdc1 rw\n\
            42 27 0:42 / /var/library rw - tmpfs tmpfs rw\n";
        let source = |folder: &str| source_of(mountinfo, Path::new(folder)).unwrap();
        assert_eq!(source("/var/lib/berth/image"), "/dev/sdc1");
        assert_eq!(source("/var"), "/dev/vda");
    }

    #[test]
    fn sizes_of_a_filesystem() {
        let folder = tempfile::tempdir().unwrap();
        let filesystem = Filesystem::of(folder.path()).unwrap();
        assert!(filesystem.bytes > 0 && !filesystem.device.is_empty(), "{filesystem:?}");
        assert_eq!(Filesystem::of(Path::new("/nonexistent")), None);
    }
}
