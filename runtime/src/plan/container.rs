//! The plan of a container: its namespaces, its root filesystem, its command and its standard streams.

use serde::{Deserialize, Serialize};

use super::devices::DeviceNode;
use super::hooks::Hooks;
use super::mounts::{MountOp, Propagation};
use super::namespaces::{NamespaceSource, PidNamespace, UserNamespace};
use super::process::ProcessPlan;
use super::restore::RestorePlan;
use super::runtime::RuntimePlan;
use super::{CgroupJoin, FdSlot};

/// The plan of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerPlan {
    /// Process namespace.
    pub pid: PidNamespace,
    /// The ids of the pod's user namespace, which the container joins.
    #[serde(default)]
    pub userns: Option<UserNamespace>,
    /// Network namespace: `Pod` or `Host`. The CRI never requests `New`, but it works.
    pub net: NamespaceSource,
    /// IPC namespace.
    pub ipc: NamespaceSource,
    /// UTS namespace.
    pub uts: NamespaceSource,
    /// Whether the container has a new cgroup namespace, with the container's cgroup as its root.
    pub cgroup_namespace: bool,
    /// The container's cgroup.
    pub cgroup: CgroupJoin,
    /// The root filesystem: a detached mount.
    pub rootfs: FdSlot,
    /// Whether the root filesystem is made read-only after all mounts are in place.
    pub rootfs_readonly: bool,
    /// Propagation of the container's `/` after all mounts are in place.
    pub rootfs_propagation: Propagation,
    /// Programs that run at points of the container's life.
    #[serde(default)]
    pub hooks: Option<Hooks>,
    /// Mounts, in the order in which they are attached.
    pub mounts: Vec<MountOp>,
    /// Directories that are created in the root filesystem if absent (an image's VOLUME paths, the working
    /// folder).
    pub directories: Vec<String>,
    /// Device nodes that are not in the new /dev, by their absolute path.
    pub devices: Vec<DeviceNode>,
    /// Paths that are hidden by /dev/null or an empty read-only folder. Absent paths are skipped.
    pub masked_paths: Vec<String>,
    /// Paths that are remounted read-only. Absent paths are skipped.
    pub readonly_paths: Vec<String>,
    /// Sysctls of namespaces that the container owns: name with dots and value.
    pub sysctls: Vec<(String, String)>,
    /// The hostname of a new UTS namespace.
    pub hostname: Option<String>,
    /// SELinux label of the filesystems that are created for the container.
    #[serde(default)]
    pub mount_label: Option<String>,
    /// The container's command.
    pub process: ProcessPlan,
    /// The container's standard streams.
    pub stdio: StdioPlan,
    /// The checkpoint that is restored in place of the command.
    #[serde(default)]
    pub restore: Option<RestorePlan>,
    /// The OCI runtime that creates the container. It reads the bundle's `config.json`; of this plan it needs only the root
    /// filesystem, the mounts that come from outside of the container, the folders and the streams.
    #[serde(default)]
    pub runtime: Option<RuntimePlan>,
}

/// The standard streams of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StdioPlan {
    /// Whether standard input is a pipe (or the pty) that the keeper holds open for attached clients. Else it is
    /// /dev/null.
    pub stdin: bool,
    /// Whether the pipe is closed when the first attached client leaves.
    pub stdin_once: bool,
    /// Whether the container has a pseudo terminal, created in its devpts. The keeper holds the master.
    pub tty: bool,
    /// The CRI log file, absolute and without a symbolic link in its path. Without a log file, output is read and
    /// dropped.
    pub log_path: Option<String>,
    /// The same file, open for appending. The daemon opens it, because opening a file on a hung disk blocks.
    #[serde(default)]
    pub log: Option<FdSlot>,
}
