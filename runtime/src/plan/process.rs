//! The command of a container or of an exec: what is executed, with which rights and limits.

use serde::{Deserialize, Serialize};

use super::FdSlot;
use super::scheduling::SchedulingPlan;

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
