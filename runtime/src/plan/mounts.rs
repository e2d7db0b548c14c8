//! The mounts of a container.

use serde::{Deserialize, Serialize};

use super::FdSlot;
use super::devices::DeviceNode;
use super::namespaces::UserNamespace;

/// Propagation of a mount (mount_namespaces(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// Nothing is changed: the propagation of the source.
    #[default]
    Unchanged,
    /// Mounts are neither received nor sent (`MS_PRIVATE`).
    Private,
    /// Mounts are received from the peer group, but not sent (`MS_SLAVE`).
    Slave,
    /// Mounts are received from the peer group and sent to it (`MS_SHARED`).
    Shared,
    /// As private, and the mount cannot be bind mounted (`MS_UNBINDABLE`).
    Unbindable,
}

/// One mount of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountOp {
    /// The target, as a path inside the container. It is created if absent.
    pub target: String,
    /// The kind of mount.
    pub kind: MountKind,
    /// `MOUNT_ATTR_*` to set on the new mount (mount_setattr(2)).
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub clear: u64,
    /// Whether `set` and `clear` also apply to the mounts below (`AT_RECURSIVE`).
    pub recursive_attributes: bool,
    /// Propagation of the new mount.
    pub propagation: Propagation,
    /// Whether `propagation` also applies to the mounts below.
    pub recursive_propagation: bool,
}

/// The owners of a mount's files (mount_setattr(2), "ID-mapped mounts").
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountIds {
    /// The ids on the disk are those of the host.
    #[default]
    Host,
    /// The ids on the disk are those inside the pod's user namespace.
    Pod,
    /// The ids on the disk are the ids inside these ranges.
    Mapped(UserNamespace),
}

/// The kind of a mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountKind {
    /// A file or folder of the host, by its absolute path. The init opens it while it is still in the host's mount
    /// namespace. A path that hangs blocks only this child, which the daemon can kill.
    Bind {
        /// The path on the host.
        source: String,
        /// Whether the mounts below it are included.
        recursive: bool,
        /// Whether it is created as a folder if absent, as containerd and CRI-O do for the kubelet.
        create: bool,
        /// The owners of its files.
        #[serde(default)]
        ids: MountIds,
    },
    /// A detached mount that came with the message.
    Tree {
        /// The mount's descriptor.
        tree: FdSlot,
    },
    /// A new filesystem: proc, sysfs, tmpfs, mqueue, devpts.
    Filesystem {
        /// The type, as in /proc/filesystems.
        fstype: String,
        /// The source, which is shown as the device.
        source: String,
        /// `key=value` and flags, given to fsconfig(2) one by one.
        options: Vec<(String, Option<String>)>,
        /// Always false, and no keeper reads it. Keepers of earlier versions require the field.
        keep_mode: bool,
    },
    /// A new tmpfs for /dev. Nodes and links are created in it before it is attached.
    Dev {
        /// Options of the tmpfs.
        options: Vec<(String, Option<String>)>,
        /// The nodes, with paths relative to /dev.
        nodes: Vec<DeviceNode>,
        /// Symbolic links: name relative to /dev, and target.
        links: Vec<(String, String)>,
    },
    /// The pod's shared memory: a clone of the mount that the pause holds.
    PodShm,
    /// A file of the pod ([`super::SandboxPlan::files`]): a clone of the mount that the pause holds.
    PodFile {
        /// The file's name.
        name: String,
    },
    /// The container's cgroup tree: cgroup2, or one mount per v1 hierarchy below a tmpfs.
    Cgroup {
        /// v1: the hierarchies, in order; empty on v2.
        hierarchies: Vec<CgroupHierarchy>,
    },
}

impl MountKind {
    /// Whether this is a new procfs.
    #[must_use]
    pub fn is_procfs(&self) -> bool {
        matches!(self, Self::Filesystem { fstype, .. } if fstype == "proc")
    }

    /// Returns the name of a pod file.
    #[must_use]
    pub fn pod_file(&self) -> Option<&String> {
        match self {
            Self::PodFile { name } => Some(name),
            _ => None,
        }
    }
}

/// One v1 hierarchy as it appears below /sys/fs/cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupHierarchy {
    /// The folder's name: `memory`, `cpu,cpuacct`, `systemd`.
    pub folder: String,
    /// The mount's options: `["cpu", "cpuacct"]`, or `["none", "name=systemd"]`.
    pub options: Vec<String>,
    /// Symbolic links beside the folder that point to it (`cpu`, `cpuacct`).
    pub links: Vec<String>,
}
