//! The steps of a first process, which its failures name.

use serde::{Deserialize, Serialize};

macro_rules! steps {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $description:literal;)*) => {
        /// The steps of a first process, in a container's order. The numbers are part of the protocol.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[repr(u32)]
        pub enum Step {
            $($(#[$doc])* $name = $number,)*
        }

        impl Step {
            /// Returns the step with this number on the wire.
            #[must_use]
            pub fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }

            /// Returns the step's number on the wire.
            #[must_use]
            pub fn number(self) -> u32 {
                match self { $(Self::$name => $number,)* }
            }

            /// Describes the step, as the start of an error message.
            #[must_use]
            pub fn description(self) -> &'static str {
                match self { $(Self::$name => $description,)* }
            }
        }
    };
}

steps! {
    /// Cloning the first process (clone3(2)).
    Clone = 1, "clone the first process";
    /// Joining the cgroup.
    Cgroup = 2, "join the cgroup";
    /// Opening the sources of bind mounts.
    OpenSource = 3, "open the source of mount";
    /// Opening the pod's shared memory and files.
    PodShm = 4, "open the pod's shared memory and files";
    /// Joining the pod's namespaces (setns(2)).
    JoinNamespaces = 5, "join the pod's namespaces";
    /// Creating the remaining namespaces (unshare(2)).
    Unshare = 6, "make the container's namespaces";
    /// Stopping propagation to the host.
    PrivateMounts = 7, "separate the container's mounts from the host's";
    /// Attaching the root filesystem.
    AttachRootfs = 8, "attach the root filesystem";
    /// Creating or finding the target of a mount.
    MountTarget = 9, "prepare the target of mount";
    /// A mount or bind mount of the plan.
    Mount = 10, "mount";
    /// Setting the attributes or the propagation of a mount.
    MountAttributes = 11, "set the attributes of mount";
    /// Creating a device node.
    Device = 12, "make device";
    /// Creating a folder in the root filesystem.
    Directory = 13, "make directory";
    /// Setting a sysctl.
    Sysctl = 14, "set sysctl";
    /// Making a path read-only.
    ReadonlyPath = 15, "make read-only path";
    /// Masking a path.
    MaskedPath = 16, "mask path";
    /// Changing the root (pivot_root(2)).
    PivotRoot = 17, "pivot_root";
    /// Setting the root filesystem's read-only flag and propagation.
    RootAttributes = 18, "set the attributes of the root filesystem";
    /// Setting the hostname.
    Hostname = 19, "set the hostname";
    /// Creating the pseudo terminal.
    Terminal = 20, "make the terminal";
    /// Setting up the standard streams and the session.
    Stdio = 21, "set up the standard streams";
    /// Setting a resource limit.
    Rlimit = 22, "set resource limit";
    /// Setting oom_score_adj.
    OomScore = 23, "set oom_score_adj";
    /// Setting the label of a security module.
    SecurityLabel = 24, "set the security label";
    /// Setting groups, gid and uid.
    Credentials = 25, "set user and groups";
    /// Setting the capability sets.
    Capabilities = 26, "set capabilities";
    /// Setting no_new_privs.
    NoNewPrivs = 27, "set no_new_privs";
    /// Changing to the working directory.
    WorkingDirectory = 28, "change to the working directory";
    /// Closing descriptors that the container must not have.
    CloseDescriptors = 29, "close descriptors";
    /// Loading the seccomp filter.
    Seccomp = 30, "load the seccomp filter";
    /// Executing the program (execve(2)).
    Exec = 31, "exec";
    /// Running a hook.
    Hook = 34, "run hook";
    /// Checking that mounts can propagate between a volume and the host.
    Peers = 33, "propagate mount";
    /// Opening the procfs of a shared PID namespace.
    PodProc = 35, "open the procfs of the shared PID namespace";
    /// Joining the session keyring.
    Keyring = 36, "join the session keyring";
    /// Setting the scheduler, the I/O priority or the memory policy.
    Scheduling = 37, "set the scheduling";
    /// Restoring the processes of a checkpoint.
    Restore = 38, "restore the checkpoint";
    /// A call of the OCI runtime that creates the container.
    Runtime = 39, "call the OCI runtime";
    /// The process ended without a report.
    Vanished = 32, "the first process ended before exec";
}
