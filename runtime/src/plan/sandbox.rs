//! The plan of a pod's pause, which holds the pod's namespaces and shared files.

use serde::{Deserialize, Serialize};

use super::CgroupJoin;
use super::namespaces::{NamespaceSource, UserNamespace};
use super::process::SeccompPlan;

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
