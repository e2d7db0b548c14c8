//! The mounts and network interfaces of this machine, as procfs lists them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::DemoError;

/// Returns filesystem and mount point of each mount: the parts of a line of `/proc/self/mountinfo` that do not change.
///
/// # Errors
/// procfs cannot be read.
pub fn mounts() -> Result<BTreeSet<String>, DemoError> {
    Ok(mountinfo()?.iter().map(|mount| format!("{} on {}", mount.kind, mount.point.display())).collect())
}

/// Returns the mount points of cgroup hierarchies.
///
/// # Errors
/// procfs cannot be read.
pub fn cgroup_mounts() -> Result<Vec<PathBuf>, DemoError> {
    let mounts = mountinfo()?.into_iter();
    Ok(mounts.filter(|mount| mount.kind.starts_with("cgroup")).map(|mount| mount.point).collect())
}

struct MountEntry {
    point: PathBuf,
    kind: String,
}

/// Parses proc(5), `/proc/pid/mountinfo`: the fifth field is the mount point, the first after the dash the filesystem.
fn mountinfo() -> Result<Vec<MountEntry>, DemoError> {
    let path = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(path).map_err(DemoError::file("read", path))?;
    let mount = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let kind = right.split(' ').next()?.to_owned();
        Some(MountEntry { point: left.split(' ').nth(4)?.into(), kind })
    };
    Ok(text.lines().filter_map(mount).collect())
}

/// Returns the interfaces of this network namespace. /sys/class/net is not used: it shows those of the namespace in
/// which sysfs was mounted.
///
/// # Errors
/// procfs cannot be read.
pub fn interfaces() -> Result<BTreeSet<String>, DemoError> {
    let path = Path::new("/proc/self/net/dev");
    let text = fs::read_to_string(path).map_err(DemoError::file("read", path))?;
    // The table has two heading lines.
    let names = text.lines().skip(2).filter_map(|line| line.split_once(':'));
    Ok(names.map(|(name, _)| name.trim().to_owned()).collect())
}
