//! The cgroup hierarchies of this host, read from /proc/self/mountinfo (proc(5)) and from the list of v2
//! controllers.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::mark::Mark;
use crate::plan::CgroupHierarchy;

/// The size of most lists of mounts.
const MOUNTINFO: usize = 16 << 10;

/// The cgroup version of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Only version 1.
    V1,
    /// Only version 2.
    V2,
    /// Version 1, and a version 2 hierarchy without controllers. Version 1 is used.
    Hybrid,
}

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub(super) mount: PathBuf,
    /// The controllers, or `name=systemd`.
    pub(super) controllers: Vec<String>,
}

/// The hierarchies of this host.
#[derive(Clone, Debug)]
pub struct Hierarchies {
    version: Version,
    used: Vec<Arc<Hierarchy>>,
    /// The mark of cgroups that are created.
    mark: Option<Mark>,
}

impl Hierarchies {
    /// Detects the hierarchies of this host.
    ///
    /// # Errors
    /// No cgroup hierarchy is mounted.
    pub fn detect() -> io::Result<Self> {
        // The kernel writes the list again for every read(2), and reports the size 0: a large buffer needs one read.
        let mut mounts = String::with_capacity(MOUNTINFO);
        fs::File::open("/proc/self/mountinfo")?.read_to_string(&mut mounts)?;
        let controllers =
            |mount: &Path| fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
        Self::of(&mounts, controllers).ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, "no cgroup hierarchy is mounted below /sys/fs/cgroup")
        })
    }

    fn of(mountinfo: &str, v2_controllers: impl Fn(&Path) -> String) -> Option<Self> {
        let (mut v1, mut v2) = (Vec::new(), None);
        for line in mountinfo.lines() {
            let Some((fstype, hierarchy)) = mounted(line) else { continue };
            match fstype {
                "cgroup2" => v2 = v2.or(Some(hierarchy.mount)),
                _ if v1.iter().any(|other: &Hierarchy| other.controllers == hierarchy.controllers) => {}
                _ => v1.push(hierarchy),
            }
        }
        let (version, used) = match (v1.is_empty(), v2) {
            (true, Some(mount)) => {
                let controllers = v2_controllers(&mount).split_whitespace().map(str::to_owned).collect();
                (Version::V2, vec![Hierarchy { mount, controllers }])
            }
            (false, None) => (Version::V1, v1),
            (false, Some(_)) => (Version::Hybrid, v1),
            (true, None) => return None,
        };
        Some(Self { version, used: used.into_iter().map(Arc::new).collect(), mark: None })
    }

    /// Sets the mark of the cgroups that are created.
    #[must_use]
    pub fn with_mark(self, mark: Mark) -> Self {
        Self { mark: Some(mark), ..self }
    }

    /// The mark of the cgroups that are created.
    #[must_use]
    pub fn own_mark(&self) -> Option<&Mark> {
        self.mark.as_ref()
    }

    /// Marks the folder of a new cgroup.
    pub(super) fn mark(&self, folder: &Path) {
        if let Some(mark) = &self.mark {
            mark.set(folder);
        }
    }

    /// Returns the version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Returns whether version 2 is used.
    #[must_use]
    pub fn is_v2(&self) -> bool {
        self.version == Version::V2
    }

    /// Returns all available controllers.
    #[must_use]
    pub fn controllers(&self) -> Vec<String> {
        self.used.iter().flat_map(|hierarchy| hierarchy.controllers.clone()).collect()
    }

    pub(super) fn used(&self) -> impl Iterator<Item = &Arc<Hierarchy>> {
        self.used.iter()
    }

    /// Returns the v1 hierarchies as a container sees them. Empty on v2.
    #[must_use]
    pub fn in_container(&self) -> Vec<CgroupHierarchy> {
        if self.is_v2() {
            return Vec::new();
        }
        self.used.iter().map(|hierarchy| hierarchy.in_container()).collect()
    }
}

impl Hierarchy {
    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|other| other == controller)
    }

    pub(super) fn in_container(&self) -> CgroupHierarchy {
        let folder = self.mount.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let named = self.controllers.iter().any(|controller| controller.starts_with("name="));
        let mut options = self.controllers.clone();
        if named {
            options.insert(0, "none".to_owned());
        }
        let single = |controller: &&String| !controller.contains('=') && **controller != folder;
        let links = if self.controllers.len() > 1 {
            self.controllers.iter().filter(single).cloned().collect()
        } else {
            Vec::new()
        };
        CgroupHierarchy { folder, options, links }
    }
}

/// Returns the mount points of all hierarchies, including an unused one of version 2.
pub(super) fn mounts() -> io::Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mounts.lines().filter_map(|line| mounted(line).map(|(_, hierarchy)| hierarchy.mount)).collect())
}

/// Parses a line of mountinfo. Returns the filesystem type and the hierarchy if it is a cgroup mount.
fn mounted(line: &str) -> Option<(&str, Hierarchy)> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mount = mount.split(' ').nth(4)?;
    let mut fields = filesystem.split(' ');
    let (fstype, _source, options) = (fields.next()?, fields.next()?, fields.next()?);
    if !matches!(fstype, "cgroup" | "cgroup2") || !Path::new(mount).starts_with("/sys/fs/cgroup") {
        return None;
    }
    let flags = ["rw", "ro", "xattr", "clone_children", "noprefix", "favordynmods"];
    let controllers = options
        .split(',')
        .filter(|option| !flags.contains(option) && !option.starts_with("release_agent="))
        .map(str::to_owned)
        .collect();
    Some((fstype, Hierarchy { mount: mount.into(), controllers }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup systemd rw,xattr,name=systemd
";
    const V2: &str = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

    #[test]
    fn versions_are_detected() {
        let version = |mounts: &str| Hierarchies::of(mounts, |_| "cpu memory".to_owned()).unwrap().version();
        assert_eq!(version(V1), Version::V1);
        assert_eq!(version(V2), Version::V2);
        assert_eq!(version(&format!("{V2}{V1}")), Version::Hybrid);
        assert!(Hierarchies::of("1 0 0:1 / / rw - ext4 /dev/vda rw", |_| String::new()).is_none());
    }

    #[test]
    fn hierarchies_look_the_same_in_a_container() {
        let hierarchies = Hierarchies::of(V1, |_| String::new()).unwrap().in_container();
        let [cpu, memory, systemd] = hierarchies.as_slice() else { panic!("{hierarchies:?}") };
        assert_eq!(cpu.folder, "cpu,cpuacct");
        assert_eq!(cpu.links, ["cpu", "cpuacct"]);
        assert_eq!((memory.options.as_slice(), memory.links.len()), (["memory".to_owned()].as_slice(), 0));
        assert_eq!(systemd.options, ["none", "name=systemd"]);
        assert!(Hierarchies::of(V2, |_| String::new()).unwrap().in_container().is_empty());
    }
}
