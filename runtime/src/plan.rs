//! The plans of a pod's, a container's and an exec's first process. The daemon compiles them, so that the process
//! itself parses nothing and allocates little: it executes these structures in order.
//!
//! Strings contain no NUL byte: the compiler rejects those that do, because the kernel cannot take them.
//! Descriptors are sent beside the message that contains a plan (`SCM_RIGHTS`). The plan refers to them by their
//! index.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The index of a descriptor among those that came with the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdSlot(pub u32);

/// The source of one of a process's namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceSource {
    /// A new namespace.
    New,
    /// The namespace of the pod's pause.
    Pod,
    /// The host's namespace: nothing is done.
    Host,
    /// The namespace of a descriptor.
    Descriptor(FdSlot),
}

/// The process namespace of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidNamespace {
    /// A new namespace in which the container's command is process 1.
    New,
    /// The pod's namespace, in which the pause is process 1.
    Pod,
    /// The host's namespace.
    Host,
    /// The namespace of another container of the same pod, by its id (CRI `NamespaceMode.TARGET`).
    Container(String),
}

/// How a process joins its cgroup before it executes a program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupJoin {
    /// v2: the cgroup's directory, for `CLONE_INTO_CGROUP` (clone(2)).
    pub directory: Option<FdSlot>,
    /// v1: `tasks` of every hierarchy, open for writing. The child moves itself.
    // Older keepers write the child's pid to these files. The name on the wire is the same for both.
    #[serde(rename = "procs")]
    pub tasks: Vec<FdSlot>,
    /// `memory.events` (v2) or `memory.oom_control` (v1). It is read after the container has ended, to detect an
    /// OOM kill.
    pub oom: Option<FdSlot>,
}

/// A range of ids in a user namespace (user_namespaces(7), "uid_map").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// The first id in the namespace.
    pub inside: u32,
    /// The first id on the host.
    pub outside: u32,
    /// The number of consecutive ids.
    pub length: u32,
}

/// The ids of a pod's user namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespace {
    /// Ranges of user IDs.
    pub uids: Vec<IdRange>,
    /// Ranges of group IDs.
    pub gids: Vec<IdRange>,
}

impl UserNamespace {
    /// Formats ranges for a file that maps ids (user_namespaces(7), "uid_map").
    #[must_use]
    pub fn lines(ranges: &[IdRange]) -> String {
        ranges.iter().map(|range| format!("{} {} {}\n", range.inside, range.outside, range.length)).collect()
    }

    /// Returns the host's id of a user of the namespace, or `None` if the user is not mapped.
    #[must_use]
    pub fn host_uid(&self, inside: u32) -> Option<u32> {
        self.uids.iter().find_map(|range| {
            let offset = inside.checked_sub(range.inside).filter(|offset| *offset < range.length)?;
            range.outside.checked_add(offset)
        })
    }
}

/// The plan of a pod's pause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxPlan {
    /// Network namespace: `New` or `Host`.
    pub net: NamespaceSource,
    /// The pod's user namespace. It owns all other namespaces of the pod.
    #[serde(default)]
    pub userns: Option<UserNamespace>,
    /// IPC namespace: `New` or `Host`.
    pub ipc: NamespaceSource,
    /// UTS namespace: `New` or `Host`.
    pub uts: NamespaceSource,
    /// Process namespace: `New` if the pod's containers share one, else `Host`.
    pub pid: NamespaceSource,
    /// The hostname of a new UTS namespace.
    pub hostname: Option<String>,
    /// Sysctls, written inside the new namespaces: name with dots (`net.ipv4.ip_forward`) and value.
    pub sysctls: Vec<(String, String)>,
    /// The size of the pod's /dev/shm in bytes; `None` with the host's IPC namespace.
    pub shm_size: Option<u64>,
    /// The pause's seccomp filter.
    #[serde(default)]
    pub seccomp: Option<SeccompPlan>,
    /// User id of the pause, in its user namespace.
    #[serde(default)]
    pub uid: u32,
    /// Group id of the pause.
    #[serde(default)]
    pub gid: u32,
    /// The complete list of the pause's supplementary groups.
    #[serde(default)]
    pub groups: Vec<u32>,
    /// AppArmor profile of the pause.
    #[serde(default)]
    pub apparmor: Option<String>,
    /// SELinux label of the pause.
    #[serde(default)]
    pub selinux: Option<String>,
    /// SELinux label of the pod's shared memory and files.
    #[serde(default)]
    pub mount_label: Option<String>,
    /// Files that the pod's containers share.
    #[serde(default)]
    pub files: Vec<PodFile>,
    /// The pause's cgroup.
    pub cgroup: CgroupJoin,
    /// `/proc/self/oom_score_adj` of the pause.
    pub oom_score_adj: Option<i32>,
}

/// A file that the containers of a pod share as long as the pod runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodFile {
    /// The file's name, without slashes.
    pub name: String,
    /// The initial content.
    pub content: String,
}

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
}

/// The restore of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePlan {
    /// The helper program.
    pub program: FdSlot,
    /// The folder with the checkpoint and the helper's order.
    pub folder: String,
}

/// A kind of hook (OCI runtime specification, "POSIX-platform Hooks"), in the order of a container's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HookKind {
    /// In the host's namespaces, when the container's namespaces and mounts exist. Superseded by `CreateRuntime`.
    Prestart,
    /// In the host's namespaces, after the `prestart` hooks.
    CreateRuntime,
    /// In the container's namespaces, with the host's root.
    CreateContainer,
    /// In the container, before its command.
    StartContainer,
    /// In the host's namespaces, after the container's command was executed.
    Poststart,
    /// In the host's namespaces, after the container has ended.
    Poststop,
}

impl HookKind {
    /// All kinds, in order.
    pub const ALL: [Self; 6] = [
        Self::Prestart,
        Self::CreateRuntime,
        Self::CreateContainer,
        Self::StartContainer,
        Self::Poststart,
        Self::Poststop,
    ];

    /// Returns the name in the specification.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }

    /// Returns the kind with a name of the specification.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Returns the status of the container while the hook runs.
    #[must_use]
    pub fn status(self) -> &'static str {
        match self {
            Self::Prestart | Self::CreateRuntime | Self::CreateContainer => "creating",
            Self::StartContainer => "created",
            Self::Poststart => "running",
            Self::Poststop => "stopped",
        }
    }
}

/// The hooks of a container (OCI runtime specification, "POSIX-platform Hooks").
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hooks {
    /// The folder of the host on which the root filesystem is mounted while the hooks of a new container run. Without
    /// a folder, it is mounted on the root.
    pub root: Option<String>,
    /// The standard input of each hook, with [`Hooks::PID`] and [`Hooks::STATUS`] in place of the real ones.
    pub state: String,
    /// The `prestart` hooks, in order.
    #[serde(default)]
    pub prestart: Vec<HookPlan>,
    /// The `createRuntime` hooks, in order.
    #[serde(default)]
    pub create_runtime: Vec<HookPlan>,
    /// The `createContainer` hooks, in order.
    pub create_container: Vec<HookPlan>,
    /// The `startContainer` hooks, in order.
    #[serde(default)]
    pub start_container: Vec<HookPlan>,
    /// The `poststart` hooks, in order.
    #[serde(default)]
    pub poststart: Vec<HookPlan>,
    /// The `poststop` hooks, in order.
    #[serde(default)]
    pub poststop: Vec<HookPlan>,
}

impl Hooks {
    /// Placeholder for the pid of the process, which is not known when the plan is compiled.
    pub const PID: &str = "\"PID\"";

    /// Placeholder for the status of the container.
    pub const STATUS: &str = "\"creating\"";

    /// Returns the hooks of a kind, with their indexes among all hooks.
    pub fn of(&self, kind: HookKind) -> impl Iterator<Item = (usize, &HookPlan)> {
        self.all()
            .enumerate()
            .filter(move |(_, (other, _))| *other == kind)
            .map(|(index, (_, hook))| (index, hook))
    }

    /// Whether there are hooks of a kind.
    #[must_use]
    pub fn has(&self, kind: HookKind) -> bool {
        !self.list(kind).is_empty()
    }

    /// Whether there are hooks that run in the host's namespaces. The parent of the container runs them.
    #[must_use]
    pub fn has_host_hooks(&self) -> bool {
        [HookKind::Prestart, HookKind::CreateRuntime, HookKind::Poststart, HookKind::Poststop]
            .into_iter()
            .any(|kind| self.has(kind))
    }

    /// Returns all hooks with their kinds, in the order of a container's life.
    pub fn all(&self) -> impl Iterator<Item = (HookKind, &HookPlan)> {
        HookKind::ALL.into_iter().flat_map(|kind| self.list(kind).iter().map(move |hook| (kind, hook)))
    }

    fn list(&self, kind: HookKind) -> &[HookPlan] {
        match kind {
            HookKind::Prestart => &self.prestart,
            HookKind::CreateRuntime => &self.create_runtime,
            HookKind::CreateContainer => &self.create_container,
            HookKind::StartContainer => &self.start_container,
            HookKind::Poststart => &self.poststart,
            HookKind::Poststop => &self.poststop,
        }
    }

    /// Returns the longest time that the hooks of these kinds take.
    #[must_use]
    pub fn longest(&self, kinds: &[HookKind]) -> Duration {
        self.all().filter(|(kind, _)| kinds.contains(kind)).map(|(_, hook)| hook.limit()).sum()
    }

    /// Returns the standard input of the hooks of a kind. The placeholders are the first texts of their kind: a value
    /// that looks like one comes later.
    #[must_use]
    pub fn state_at(&self, kind: HookKind, pid: i32) -> String {
        // Another process may have the pid of one that has ended.
        let pid = if kind == HookKind::Poststop { 0 } else { pid };
        let status = format!("\"{}\"", kind.status());
        self.state.replacen(Self::PID, &pid.to_string(), 1).replacen(Self::STATUS, &status, 1)
    }
}

/// A program that runs at a point of the container's lifecycle.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookPlan {
    /// An absolute path: of the host, or of the container for `startContainer` hooks.
    pub path: String,
    /// Arguments. The first one is the name of the program (`argv[0]`).
    pub args: Vec<String>,
    /// The complete environment, as `NAME=value`.
    pub env: Vec<String>,
    /// The time in seconds after which the hook is killed.
    pub timeout: Option<u32>,
}

impl HookPlan {
    /// The time limit of a hook that specifies none.
    const DEFAULT_LIMIT: Duration = Duration::from_secs(30);

    /// Returns the time after which the hook is killed.
    #[must_use]
    pub fn limit(&self) -> Duration {
        self.timeout.map_or(Self::DEFAULT_LIMIT, |seconds| Duration::from_secs(u64::from(seconds)))
    }
}

/// The command of a container or of an exec, with its credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessPlan {
    /// Program and arguments. A program without a slash is searched in the `PATH` of `env`.
    pub args: Vec<String>,
    /// The environment, as `NAME=value`.
    pub env: Vec<String>,
    /// The working directory, absolute. It is created for a container if absent; an exec fails.
    pub cwd: String,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// The complete list of supplementary groups.
    pub groups: Vec<u32>,
    /// File mode creation mask.
    pub umask: Option<u32>,
    /// Capability sets as bit masks (capabilities(7)).
    pub capabilities: CapabilityMasks,
    /// Whether execve(2) grants no further privileges (`PR_SET_NO_NEW_PRIVS`).
    pub no_new_privs: bool,
    /// The new value of `/proc/self/oom_score_adj`; none keeps the current one.
    pub oom_score_adj: Option<i32>,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
    /// The seccomp filter.
    pub seccomp: Option<SeccompPlan>,
    /// AppArmor profile to change to on exec.
    pub apparmor: Option<String>,
    /// SELinux label to change to on exec.
    pub selinux: Option<String>,
    /// The terminal's size in columns and rows, if the process has a terminal and the size is known.
    #[serde(default)]
    pub terminal_size: Option<(u16, u16)>,
    /// Scheduler, I/O priority and memory policy.
    #[serde(default)]
    pub scheduling: SchedulingPlan,
}

/// How the kernel schedules a process and where it allocates its memory. The parent's values apply to those that are absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchedulingPlan {
    /// The scheduling policy with its parameters (sched_setattr(2)).
    pub scheduler: Option<SchedulerPlan>,
    /// The I/O priority: the class in bits 13 to 15, the priority below (ioprio_set(2)).
    pub io_priority: Option<u16>,
    /// The memory policy.
    pub memory_policy: Option<MemoryPolicyPlan>,
}

/// A scheduler (sched_setattr(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchedulerPlan {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// Nice value, for the policies OTHER and BATCH.
    pub nice: i32,
    /// Priority, for the policies FIFO and RR.
    pub priority: u32,
    /// Nanoseconds, for the policy DEADLINE.
    pub runtime: u64,
    /// Nanoseconds, for the policy DEADLINE.
    pub deadline: u64,
    /// Nanoseconds, for the policy DEADLINE.
    pub period: u64,
}

/// A memory policy (set_mempolicy(2)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPolicyPlan {
    /// `MPOL_*` with flags.
    pub mode: u32,
    /// The nodes as bits.
    pub nodes: Vec<u64>,
}

/// Capability sets as bit masks: bit n is capability n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilityMasks {
    /// The bounding set: the limit of what an exec can gain.
    pub bounding: u64,
    /// The effective set: the capabilities in force.
    pub effective: u64,
    /// The permitted set: the capabilities that may be made effective.
    pub permitted: u64,
    /// The inheritable set, kept over exec by file capabilities. Contains only the ambient capabilities, else
    /// nothing (CVE-2022-29162).
    pub inheritable: u64,
    /// The ambient set, kept over exec by a user other than root.
    pub ambient: u64,
}

/// One resource limit (getrlimit(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// The limited resource (`RLIMIT_*`, getrlimit(2)).
    pub resource: u32,
    /// Soft limit. `u64::MAX` means unlimited.
    pub soft: u64,
    /// Hard limit. `u64::MAX` means unlimited.
    pub hard: u64,
}

/// A compiled seccomp filter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeccompPlan {
    /// A descriptor of a file that contains an array of `struct sock_filter`.
    pub filter: FdSlot,
    /// The flags of seccomp(2) (`SECCOMP_FILTER_FLAG_*`).
    pub flags: u64,
    /// Whether the filter may reject the system calls with which a process reports that its exec failed.
    pub mute: bool,
    /// Whether the filter allows every system call between its loading and the exec, including the clone.
    #[serde(default)]
    pub early: bool,
    /// The supervisor that handles the system calls with the action `SCMP_ACT_NOTIFY`.
    pub listener: Option<SeccompListener>,
}

/// A supervisor of system calls (OCI runtime spec, "Container Process State").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeccompListener {
    /// The supervisor's unix socket, which receives the filter's descriptor.
    pub path: String,
    /// Data for the supervisor.
    pub metadata: String,
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
    /// A file of the pod ([`SandboxPlan::files`]): a clone of the mount that the pause holds.
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

/// A device node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// The path: relative to /dev in [`MountKind::Dev`], absolute in [`ContainerPlan::devices`].
    pub path: String,
    /// Block, character or FIFO.
    pub kind: DeviceKind,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// The user ID of the owner.
    pub uid: u32,
    /// The group ID of the owner.
    pub gid: u32,
    /// The absolute path of the host's node, if it differs.
    #[serde(default)]
    pub source: Option<String>,
}

/// The kind of a device node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    /// Character device.
    Char,
    /// Block device.
    Block,
    /// Named pipe.
    Fifo,
}

/// The plan of an exec: a further process in a running container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecPlan {
    /// The command with its credentials and limits.
    pub process: ProcessPlan,
    /// The exec's cgroup, below the container's.
    pub cgroup: CgroupJoin,
    /// The ids of the container's user namespace, which the exec joins.
    #[serde(default)]
    pub userns: Option<UserNamespace>,
    /// Standard input. Without one it is /dev/null.
    pub stdin: Option<FdSlot>,
    /// Standard output. Without one it is /dev/null.
    pub stdout: Option<FdSlot>,
    /// Standard error. Without one it is /dev/null.
    pub stderr: Option<FdSlot>,
    /// Whether the exec has a pseudo terminal, created in the container's devpts. The keeper sends its master with
    /// the answer.
    pub tty: bool,
}
