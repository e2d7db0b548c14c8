//! What the first process of a pod, a container or an exec does, compiled by the daemon so that the process itself
//! parses nothing and allocates little: it walks these structures in order.
//!
//! All strings are free of NUL bytes: the compiler refuses others, since none can be given to the kernel. Descriptors
//! travel beside the message that carries a plan (`SCM_RIGHTS`) and are named by their place among them.

use serde::{Deserialize, Serialize};

/// The place of a descriptor among those that came with the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdSlot(pub u32);

/// How a process gets one of its namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceSource {
    /// A new one.
    New,
    /// That of the pod's pause process.
    Pod,
    /// The host's: nothing is done.
    Host,
}

/// The process namespace of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidNamespace {
    /// A new one in which the container's command is process 1.
    New,
    /// The pod's, whose process 1 is the pause.
    Pod,
    /// The host's.
    Host,
    /// That of another container of the same pod, by its id (CRI `NamespaceMode.TARGET`).
    Container(String),
}

/// How the process gets into its cgroup before it runs anything of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupJoin {
    /// v2: the cgroup's directory, for `CLONE_INTO_CGROUP` (clone(2)).
    pub directory: Option<FdSlot>,
    /// v1: `tasks`, open for writing, of every hierarchy; the child moves itself.
    // A keeper that writes the child's pid does the same with these: the name on the wire is that of both.
    #[serde(rename = "procs")]
    pub tasks: Vec<FdSlot>,
    /// `memory.events` (v2) or `memory.oom_control` (v1), read when the container has ended to tell an OOM kill.
    pub oom: Option<FdSlot>,
}

/// A range of ids in a user namespace (user_namespaces(7), "uid_map").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// The first id in the namespace.
    pub inside: u32,
    /// What it is on the host.
    pub outside: u32,
    /// How many follow one another.
    pub length: u32,
}

/// The ids of a pod's user namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespace {
    /// Users.
    pub uids: Vec<IdRange>,
    /// Groups.
    pub gids: Vec<IdRange>,
}

impl UserNamespace {
    /// Ranges as a file that maps ids wants them (user_namespaces(7), "uid_map").
    #[must_use]
    pub fn lines(ranges: &[IdRange]) -> String {
        ranges.iter().map(|range| format!("{} {} {}\n", range.inside, range.outside, range.length)).collect()
    }

    /// What a user of the namespace is on the host; none where it is nobody there.
    #[must_use]
    pub fn host_uid(&self, inside: u32) -> Option<u32> {
        self.uids.iter().find_map(|range| {
            let offset = inside.checked_sub(range.inside).filter(|offset| *offset < range.length)?;
            range.outside.checked_add(offset)
        })
    }
}

/// What the pause of a pod is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxPlan {
    /// Network namespace: `New` or `Host`.
    pub net: NamespaceSource,
    /// A user namespace that owns all others of the pod.
    #[serde(default)]
    pub userns: Option<UserNamespace>,
    /// IPC namespace: `New` or `Host`.
    pub ipc: NamespaceSource,
    /// UTS namespace: `New` or `Host`.
    pub uts: NamespaceSource,
    /// Process namespace: `New` where the pod's containers share one, else `Host`.
    pub pid: NamespaceSource,
    /// The name given to a new UTS namespace.
    pub hostname: Option<String>,
    /// `key` with dots (`net.ipv4.ip_forward`) and value, written inside the new namespaces.
    pub sysctls: Vec<(String, String)>,
    /// Bytes of the pod's shared /dev/shm; `None` with the host's IPC namespace.
    pub shm_size: Option<u64>,
    /// The pause's filter of system calls.
    #[serde(default)]
    pub seccomp: Option<SeccompPlan>,
    /// User id of the pause, in its user namespace.
    #[serde(default)]
    pub uid: u32,
    /// Group id of the pause.
    #[serde(default)]
    pub gid: u32,
    /// Supplementary groups of the pause, exactly these.
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

/// A file that the containers of a pod share, for as long as the pod runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodFile {
    /// A name without slashes.
    pub name: String,
    /// What is in it at first.
    pub content: String,
}

/// What a container is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerPlan {
    /// Process namespace.
    pub pid: PidNamespace,
    /// The pod's user namespace is joined, whose ids are these.
    #[serde(default)]
    pub userns: Option<UserNamespace>,
    /// Network namespace: `Pod` or `Host` (`New` is never asked by the CRI, but works).
    pub net: NamespaceSource,
    /// IPC namespace.
    pub ipc: NamespaceSource,
    /// UTS namespace.
    pub uts: NamespaceSource,
    /// A cgroup namespace of its own, rooted at the container's cgroup.
    pub cgroup_namespace: bool,
    /// The container's cgroup.
    pub cgroup: CgroupJoin,
    /// The root filesystem: a detached mount.
    pub rootfs: FdSlot,
    /// The root filesystem is made read-only after all mounts are in place.
    pub rootfs_readonly: bool,
    /// Propagation of the container's `/` after all mounts are in place.
    pub rootfs_propagation: Propagation,
    /// Programs of the host that run before the root filesystem is the root.
    #[serde(default)]
    pub hooks: Option<Hooks>,
    /// Mounts, in the order in which they are attached.
    pub mounts: Vec<MountOp>,
    /// Directories that are made in the root filesystem when absent (an image's VOLUME paths, the working folder).
    pub directories: Vec<String>,
    /// Device nodes beyond those of the fresh /dev, by their absolute path.
    pub devices: Vec<DeviceNode>,
    /// Paths hidden behind /dev/null or an empty read-only folder; absent ones are passed over.
    pub masked_paths: Vec<String>,
    /// Paths remounted read-only; absent ones are passed over.
    pub readonly_paths: Vec<String>,
    /// `key` with dots and value, of namespaces that the container itself owns.
    pub sysctls: Vec<(String, String)>,
    /// The name given to a new UTS namespace.
    pub hostname: Option<String>,
    /// SELinux label of the filesystems that are made for it.
    #[serde(default)]
    pub mount_label: Option<String>,
    /// The command.
    pub process: ProcessPlan,
    /// Where its standard streams lead.
    pub stdio: StdioPlan,
}

/// The hooks of a container (OCI runtime specification, "POSIX-platform Hooks").
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hooks {
    /// The folder of the host where the root filesystem is while they run.
    pub root: String,
    /// What each is given on its standard input, with [`Hooks::PID`] where the number of the process belongs.
    pub state: String,
    /// In their order.
    pub create_container: Vec<HookPlan>,
}

impl Hooks {
    /// Stands for the number of the process, which is not known before.
    pub const PID: &str = "\"PID\"";
}

/// One hook.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookPlan {
    /// An absolute path of the host.
    pub path: String,
    /// Arguments; the first is the name under which it runs.
    pub args: Vec<String>,
    /// `NAME=value`, and nothing else.
    pub env: Vec<String>,
    /// Seconds after which it is ended.
    pub timeout: Option<u32>,
}

/// The command of a container or of an exec, with its credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessPlan {
    /// Program and arguments; a program without a slash is looked up in the plan's own `PATH`.
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Absolute; made if absent for a container, refused for an exec.
    pub cwd: String,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups, exactly these.
    pub groups: Vec<u32>,
    /// File mode creation mask.
    pub umask: Option<u32>,
    /// Capability sets as bit masks (capabilities(7)).
    pub capabilities: CapabilityMasks,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privs: bool,
    /// `/proc/self/oom_score_adj`.
    pub oom_score_adj: Option<i32>,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
    /// A compiled seccomp filter: an array of `struct sock_filter` in a descriptor.
    pub seccomp: Option<SeccompPlan>,
    /// AppArmor profile to change to on exec.
    pub apparmor: Option<String>,
    /// SELinux label to change to on exec.
    pub selinux: Option<String>,
    /// Columns and rows of its terminal, where it has one and they are known.
    #[serde(default)]
    pub terminal_size: Option<(u16, u16)>,
}

/// Capability sets as bit masks: bit n is capability n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilityMasks {
    /// Those that an exec can ever gain.
    pub bounding: u64,
    /// Those in force.
    pub effective: u64,
    /// Those that may be put in force.
    pub permitted: u64,
    /// Kept over exec by file capabilities; always 0 (CVE-2022-29162) but for what `ambient` needs.
    pub inheritable: u64,
    /// Kept over exec by a user other than root.
    pub ambient: u64,
}

/// One resource limit (getrlimit(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// `RLIMIT_*`.
    pub resource: u32,
    /// Soft limit; `u64::MAX` is no limit.
    pub soft: u64,
    /// Hard limit; `u64::MAX` is no limit.
    pub hard: u64,
}

/// A compiled seccomp filter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeccompPlan {
    /// A descriptor with the array of `struct sock_filter`, read from offset 0 to its end.
    pub filter: FdSlot,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: u64,
    /// It may refuse the calls by which a process tells that it could not exec.
    pub mute: bool,
    /// It allows all that a process does between loading it and its exec, a clone among that.
    #[serde(default)]
    pub early: bool,
    /// Who is asked about the calls that the filter hands over.
    pub listener: Option<SeccompListener>,
}

/// A supervisor of system calls (OCI runtime spec, "Container Process State").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeccompListener {
    /// Its unix socket, which takes the filter's descriptor.
    pub path: String,
    /// Data for it.
    pub metadata: String,
}

/// Where the standard streams of a container lead.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StdioPlan {
    /// A pipe (or the pty) that the keeper holds open for attached clients; else /dev/null.
    pub stdin: bool,
    /// The pipe is closed when the first attached client leaves.
    pub stdin_once: bool,
    /// A pseudo terminal made inside the container's devpts, its master owned by the keeper.
    pub tty: bool,
    /// The CRI log file, absolute and without a symbolic link on the way; without it output is read and dropped.
    pub log_path: Option<String>,
    /// The same file, open for appending. The daemon opens it, because opening a file on a hung disk blocks.
    #[serde(default)]
    pub log: Option<FdSlot>,
}

/// Propagation of a mount (mount_namespaces(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// As the source has it: nothing is changed.
    #[default]
    Unchanged,
    /// `MS_PRIVATE`.
    Private,
    /// `MS_SLAVE`.
    Slave,
    /// `MS_SHARED`.
    Shared,
    /// `MS_UNBINDABLE`.
    Unbindable,
}

/// One mount of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountOp {
    /// Where, as a path inside the container; made if absent.
    pub target: String,
    /// What.
    pub kind: MountKind,
    /// `MOUNT_ATTR_*` to set on the new mount (mount_setattr(2)).
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub clear: u64,
    /// `set` and `clear` go for the mounts below as well (`AT_RECURSIVE`).
    pub recursive_attributes: bool,
    /// Propagation of the new mount.
    pub propagation: Propagation,
    /// `propagation` goes for the mounts below as well.
    pub recursive_propagation: bool,
}

/// Whom the files of a mount belong to (mount_setattr(2), "ID-mapped mounts").
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountIds {
    /// The ids on the disk are those of the host.
    #[default]
    Host,
    /// The ids on the disk are those inside the pod's user namespace.
    Pod,
    /// The ids on the disk are the inner ones of these ranges.
    Mapped(UserNamespace),
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountKind {
    /// A file or folder of the host, by its absolute path. It is opened by the init while it still sees the host's
    /// mounts: a path that hangs holds up this child alone, which the daemon can kill.
    Bind {
        /// The path on the host.
        source: String,
        /// With the mounts below it.
        recursive: bool,
        /// Made as a folder when absent, as containerd and CRI-O do for the kubelet.
        create: bool,
        /// Whom its files belong to.
        #[serde(default)]
        ids: MountIds,
    },
    /// A detached mount that came with the message.
    Tree {
        /// Which.
        tree: FdSlot,
    },
    /// A new filesystem: proc, sysfs, tmpfs, mqueue, devpts.
    Filesystem {
        /// Type as in /proc/filesystems.
        fstype: String,
        /// Shown as the device.
        source: String,
        /// `key=value` and flags, given to fsconfig(2) one by one.
        options: Vec<(String, Option<String>)>,
        /// A tmpfs over a folder of the image starts with that folder's mode (OCI `tmpcopyup` is not part of this).
        keep_mode: bool,
    },
    /// A fresh tmpfs, filled with nodes and links while it is still detached.
    Dev {
        /// Options of the tmpfs.
        options: Vec<(String, Option<String>)>,
        /// Nodes, their paths relative to /dev.
        nodes: Vec<DeviceNode>,
        /// Name relative to /dev, and what it points to.
        links: Vec<(String, String)>,
    },
    /// The pod's shared memory: a clone of the mount that the pause holds.
    PodShm,
    /// A file of the pod ([`SandboxPlan::files`]): a clone of what the pause holds.
    PodFile {
        /// Its name.
        name: String,
    },
    /// The container's own cgroup tree: cgroup2, or one mount per v1 hierarchy below a tmpfs.
    Cgroup {
        /// v1: the hierarchies, in order; empty on v2.
        hierarchies: Vec<CgroupHierarchy>,
    },
}

impl MountKind {
    /// It is a new procfs.
    #[must_use]
    pub fn is_procfs(&self) -> bool {
        matches!(self, Self::Filesystem { fstype, .. } if fstype == "proc")
    }

    /// The name of a file of the pod.
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
    /// The folder: `memory`, `cpu,cpuacct`, `systemd`.
    pub folder: String,
    /// The mount's options: `["cpu", "cpuacct"]`, or `["none", "name=systemd"]`.
    pub options: Vec<String>,
    /// Links beside it that lead to `folder` (`cpu`, `cpuacct`).
    pub links: Vec<String>,
}

/// A device node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// Relative to /dev in [`MountKind::Dev`], absolute in [`ContainerPlan::devices`].
    pub path: String,
    /// Kind.
    pub kind: DeviceKind,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The host's node for it, absolute, where that is not at the same place.
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

/// A further process in a running container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecPlan {
    /// The command.
    pub process: ProcessPlan,
    /// Its cgroup, below the container's.
    pub cgroup: CgroupJoin,
    /// The ids of the container's user namespace, which is joined.
    #[serde(default)]
    pub userns: Option<UserNamespace>,
    /// Standard input; absent is /dev/null.
    pub stdin: Option<FdSlot>,
    /// Standard output; absent is /dev/null.
    pub stdout: Option<FdSlot>,
    /// Standard error; absent is /dev/null.
    pub stderr: Option<FdSlot>,
    /// A pseudo terminal made inside the container's devpts; its master is sent back with the answer.
    pub tty: bool,
}
