//! Mounts of the spec (OCI runtime spec, "Mounts"). Every option is translated or rejected.

use std::path::Path;

use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceType, Mount, Spec};

use super::{
    IMAGE_VOLUME, POD_FILE, POD_SHM, PlanInput, Result, invalid, path_text, propagation, ranges, text,
};
use crate::plan::{DeviceKind, DeviceNode, MountIds, MountKind, MountOp, Propagation, UserNamespace};
use crate::sys::mount;

/// The devices that every container has (OCI runtime spec, "Default Devices").
const DEFAULT_NODES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// The symbolic links that every container has (OCI runtime spec, "Dev symbolic links").
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Compiles the mounts. Returns the spec's devices that are not below a new /dev, and the mounts.
pub(super) fn compile(
    spec: &Spec,
    linux: &Linux,
    context: &PlanInput<'_>,
) -> Result<(Vec<DeviceNode>, Vec<MountOp>)> {
    let devices = linux.devices().iter().flatten();
    let devices = devices.map(|entry| device(entry, context)).collect::<Result<Vec<_>>>()?;
    let mounts = spec.mounts().iter().flatten();
    let fresh_dev = mounts.clone().any(is_fresh_dev);
    let (inside, outside): (Vec<_>, Vec<_>) =
        devices.into_iter().partition(|node| fresh_dev && node.path.starts_with("/dev/"));
    let compiled = mounts.map(|mount| compile_mount(mount, &inside, context)).collect::<Result<_>>()?;
    Ok((outside, compiled))
}

fn is_fresh_dev(mount: &Mount) -> bool {
    mount.destination() == Path::new("/dev") && mount.typ().as_deref() == Some("tmpfs")
}

fn device(device: &LinuxDevice, context: &PlanInput<'_>) -> Result<DeviceNode> {
    let path = path_text("linux.devices", device.path())?;
    let number = |value: i64| {
        u32::try_from(value)
            .map_err(|_| invalid(format!("device {path}"), value.to_string(), "is not a device number"))
    };
    let kind = match device.typ() {
        LinuxDeviceType::B => DeviceKind::Block,
        LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Char,
        LinuxDeviceType::P => DeviceKind::Fifo,
        LinuxDeviceType::A => return Err(invalid("linux.devices", path, "has no type")),
    };
    if !path.starts_with('/') {
        return Err(invalid("linux.devices", path, "is not absolute"));
    }
    Ok(DeviceNode {
        kind,
        major: number(device.major())?,
        minor: number(device.minor())?,
        mode: device.file_mode().unwrap_or(0o666),
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
        source: context.device_sources.get(&path).cloned(),
        path,
    })
}

fn compile_mount(mount: &Mount, devices: &[DeviceNode], context: &PlanInput<'_>) -> Result<MountOp> {
    let target = path_text("mount destination", mount.destination())?;
    if !target.starts_with('/') {
        return Err(invalid("mount destination", target, "is not absolute"));
    }
    let options = MountOptions::parse(&target, mount.options().as_deref().unwrap_or_default())?;
    let source = match mount.source() {
        Some(source) => path_text("mount source", source)?,
        None => String::new(),
    };
    let kind = kind(mount, &target, source, &options, devices, context)?;
    Ok(MountOp {
        target,
        kind,
        set: options.set,
        clear: options.clear,
        recursive_attributes: options.recursive_attributes,
        propagation: options.propagation,
        recursive_propagation: options.recursive_propagation,
    })
}

fn kind(
    mount: &Mount,
    target: &str,
    source: String,
    options: &MountOptions,
    devices: &[DeviceNode],
    context: &PlanInput<'_>,
) -> Result<MountKind> {
    let fstype = mount.typ().as_deref().unwrap_or(if options.bind { "bind" } else { "" });
    if source == POD_SHM {
        return Ok(MountKind::PodShm);
    }
    if let Some(name) = source.strip_prefix(POD_FILE) {
        if name.is_empty() || name.contains('/') {
            return Err(invalid(
                format!("source of mount {target}"),
                source.as_str(),
                "is not a file of the pod",
            ));
        }
        return Ok(MountKind::PodFile { name: name.to_owned() });
    }
    if source.starts_with(IMAGE_VOLUME) {
        let missing = || invalid(format!("source of mount {target}"), source.as_str(), "has no mount");
        return Ok(MountKind::Tree { tree: *context.trees.get(target).ok_or_else(missing)? });
    }
    if options.bind || fstype == "bind" {
        options.refuse_filesystem_options(target)?;
        if !source.starts_with('/') {
            return Err(invalid(format!("source of mount {target}"), source, "is not absolute"));
        }
        return Ok(MountKind::Bind {
            source,
            recursive: options.recursive_bind,
            create: options.create,
            ids: ids(mount, target, context)?,
        });
    }
    Ok(match fstype {
        // Without a new cgroup namespace the host's mount is bound: a new mount would change options that all
        // mounts of the filesystem share.
        "cgroup" | "cgroup2" if context.hierarchies.is_v2() && !context.cgroup_namespace => MountKind::Bind {
            source: "/sys/fs/cgroup".to_owned(),
            recursive: true,
            create: false,
            ids: MountIds::Host,
        },
        "cgroup" | "cgroup2" => MountKind::Cgroup { hierarchies: context.hierarchies.in_container() },
        "tmpfs" if is_fresh_dev(mount) => {
            MountKind::Dev { options: labelled(options, context), nodes: nodes(devices), links: links() }
        }
        "proc" | "sysfs" => new_filesystem(fstype, source, options.filesystem.clone()),
        "tmpfs" | "mqueue" | "devpts" => new_filesystem(fstype, source, labelled(options, context)),
        other => return Err(invalid(format!("type of mount {target}"), other, "is not supported")),
    })
}

fn ids(mount: &Mount, target: &str, context: &PlanInput<'_>) -> Result<MountIds> {
    let ids = UserNamespace { uids: ranges(mount.uid_mappings()), gids: ranges(mount.gid_mappings()) };
    match (ids.uids.is_empty(), ids.gids.is_empty()) {
        (true, true) => Ok(MountIds::Host),
        (false, false) if context.users.as_ref() == Some(&ids) => Ok(MountIds::Pod),
        (false, false) => Ok(MountIds::Mapped(ids)),
        _ => Err(invalid(
            format!("mappings of mount {target}"),
            "",
            "must have ranges for both users and groups",
        )),
    }
}

fn new_filesystem(fstype: &str, source: String, options: Vec<(String, Option<String>)>) -> MountKind {
    MountKind::Filesystem { fstype: fstype.to_owned(), source, options, keep_mode: false }
}

/// Returns the options of a filesystem for the container's files, with their SELinux label.
fn labelled(options: &MountOptions, context: &PlanInput<'_>) -> Vec<(String, Option<String>)> {
    let mut options = options.filesystem.clone();
    if let Some(label) = &context.mount_label {
        options.push(("context".to_owned(), Some(label.clone())));
    }
    options
}

/// Returns the nodes of a new /dev: the default ones and those of the spec. The spec's nodes replace default ones.
fn nodes(devices: &[DeviceNode]) -> Vec<DeviceNode> {
    let mut nodes: Vec<DeviceNode> = DEFAULT_NODES
        .iter()
        .map(|(name, major, minor)| DeviceNode {
            path: (*name).to_owned(),
            kind: DeviceKind::Char,
            major: *major,
            minor: *minor,
            mode: 0o666,
            uid: 0,
            gid: 0,
            source: None,
        })
        .collect();
    for device in devices {
        let path = device.path.trim_start_matches("/dev/").to_owned();
        if LINKS.iter().any(|(name, _)| *name == path) {
            continue;
        }
        nodes.retain(|node| node.path != path);
        nodes.push(DeviceNode { path, ..device.clone() });
    }
    nodes
}

fn links() -> Vec<(String, String)> {
    LINKS.iter().map(|(name, to)| ((*name).to_owned(), (*to).to_owned())).collect()
}

/// The options of one mount, by category.
#[derive(Debug, Default, PartialEq)]
struct MountOptions {
    set: u64,
    clear: u64,
    recursive_attributes: bool,
    propagation: Propagation,
    recursive_propagation: bool,
    bind: bool,
    recursive_bind: bool,
    create: bool,
    filesystem: Vec<(String, Option<String>)>,
}

impl MountOptions {
    fn parse(target: &str, options: &[String]) -> Result<Self> {
        let mut parsed = Self::default();
        for option in options {
            parsed.apply(target, &text(&format!("option of mount {target}"), option)?)?;
        }
        Ok(parsed)
    }

    fn apply(&mut self, target: &str, option: &str) -> Result<()> {
        match option {
            "" | "defaults" | "async" | "nomand" | "loud" => {}
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.recursive_bind) = (true, true),
            // Not part of the OCI spec. containerd and CRI-O treat the kubelet's host paths in this way.
            "berth:create" => self.create = true,
            _ if self.apply_attribute(option) => {}
            _ => match propagation(option) {
                Some((propagation, recursive)) => {
                    (self.propagation, self.recursive_propagation) = (propagation, recursive);
                }
                None => self.apply_filesystem_option(target, option)?,
            },
        }
        Ok(())
    }

    /// Applies `ro` and similar options. With the prefix `r` (`rro`) they apply to the mounts below as well.
    fn apply_attribute(&mut self, option: &str) -> bool {
        if let Some((set, clear)) = attribute(option) {
            self.change_attributes(set, clear);
            return true;
        }
        match option.strip_prefix('r').and_then(attribute) {
            Some((set, clear)) => {
                self.change_attributes(set, clear);
                self.recursive_attributes = true;
                true
            }
            None => false,
        }
    }

    /// Changes attributes. The later of two contradictory options applies.
    fn change_attributes(&mut self, set: u64, clear: u64) {
        self.set = self.set & !clear | set;
        self.clear = self.clear & !set | clear;
        // One of the three modes for access times can be set only if all are cleared (mount_setattr(2)).
        if (set | clear) & mount::ATTR_ATIME_MASK != 0 {
            self.clear |= mount::ATTR_ATIME_MASK;
        }
    }

    fn apply_filesystem_option(&mut self, target: &str, option: &str) -> Result<()> {
        let (key, value) = match option.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (option, None),
        };
        let supported = [
            "size",
            "mode",
            "uid",
            "gid",
            "nr_inodes",
            "nr_blocks",
            "newinstance",
            "ptmxmode",
            "huge",
            "noswap",
            "hidepid",
            "subset",
            "max",
            "inode32",
            "inode64",
            "mpol",
            "usrquota",
            "grpquota",
        ];
        if !supported.contains(&key) {
            return Err(invalid(format!("option of mount {target}"), option, "is not supported"));
        }
        self.filesystem.push((key.to_owned(), value));
        Ok(())
    }

    fn refuse_filesystem_options(&self, target: &str) -> Result<()> {
        match self.filesystem.first() {
            Some((key, _)) => Err(invalid(
                format!("option of bind mount {target}"),
                key.as_str(),
                "applies only to new filesystems",
            )),
            None => Ok(()),
        }
    }
}

/// Returns the `MOUNT_ATTR_*` flags that an option sets and clears.
fn attribute(option: &str) -> Option<(u64, u64)> {
    Some(match option {
        "ro" => (mount::ATTR_RDONLY, 0),
        "rw" => (0, mount::ATTR_RDONLY),
        "nosuid" => (mount::ATTR_NOSUID, 0),
        "suid" => (0, mount::ATTR_NOSUID),
        "nodev" => (mount::ATTR_NODEV, 0),
        "dev" => (0, mount::ATTR_NODEV),
        "noexec" => (mount::ATTR_NOEXEC, 0),
        "exec" => (0, mount::ATTR_NOEXEC),
        "noatime" => (mount::ATTR_NOATIME, mount::ATTR_STRICTATIME),
        "strictatime" => (mount::ATTR_STRICTATIME, mount::ATTR_NOATIME),
        "relatime" | "atime" | "nostrictatime" => (0, mount::ATTR_NOATIME | mount::ATTR_STRICTATIME),
        "nodiratime" => (mount::ATTR_NODIRATIME, 0),
        "diratime" => (0, mount::ATTR_NODIRATIME),
        "nosymfollow" => (mount::ATTR_NOSYMFOLLOW, 0),
        "symfollow" => (0, mount::ATTR_NOSYMFOLLOW),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Result<MountOptions> {
        MountOptions::parse("/x", &options.iter().map(|&option| option.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_sorted_by_category() {
        let options = parse(&["rbind", "rro", "nosuid", "rslave"]).unwrap();
        assert!(options.bind && options.recursive_bind && options.recursive_attributes);
        assert_eq!(options.set, mount::ATTR_RDONLY | mount::ATTR_NOSUID);
        assert_eq!((options.propagation, options.recursive_propagation), (Propagation::Slave, true));
        let tmpfs = parse(&["size=65536k", "mode=755", "strictatime"]).unwrap();
        assert_eq!(
            tmpfs.filesystem,
            [("size".to_owned(), Some("65536k".to_owned())), ("mode".to_owned(), Some("755".to_owned()))]
        );
    }

    #[test]
    fn the_later_of_two_options_applies() {
        let options = parse(&["ro", "rw"]).unwrap();
        assert_eq!((options.set, options.clear), (0, mount::ATTR_RDONLY));
        let options = parse(&["rw", "ro"]).unwrap();
        assert_eq!((options.set, options.clear), (mount::ATTR_RDONLY, 0));
    }

    #[test]
    fn errors_name_the_mount_of_an_unknown_option() {
        let error = parse(&["upperdir=/etc"]).unwrap_err().to_string();
        assert!(error.contains("/x") && error.contains("upperdir"), "{error}");
        assert!(parse(&["r"]).is_err());
        assert!(parse(&["ro\0"]).is_err());
    }
}
