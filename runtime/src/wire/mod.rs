//! The messages between the daemon and a pod's keeper.
//!
//! ```text
//! daemon                                keeper                               first process of a container
//!   | Request{id, Hello} ----------------->|
//!   |<------ Answer{id, Hello(snapshot)} --|
//!   | Request{id, Sandbox(plan)} --------->|-- clone3 --> pause
//!   |<-- Answer{id, Sandbox{pid}} + fds ---|
//!   | Request{id, Create(plan)} + fds ---->|-- clone3 ----------------------------->| steps
//!   |                                      |<-- Report: Terminal -------------------|
//!   |                                      |<-- Report: Moved (a clone continues) ---|
//!   |                                      |<-- Report: Hooks --- hooks of the host --> |
//!   |                                      |<-- Report: Ready | Failed -------------| waits
//!   |<------------- Answer{id, Created} ---|
//!   | Request{id, Start} ----------------->|-- one byte --------------------------->| execve
//!   |                                      |<-- Report: Restored (a checkpoint) ------|
//!   |<------------- Answer{id, Started} ---|<-- end of file: exec succeeded | Failed
//!   |<--- Event(Exited{record}) -----------|  waitid(P_PIDFD), the log is written
//! ```
//!
//! One message is one packet of a `SOCK_SEQPACKET` unix socket: JSON, with descriptors in ancillary data
//! (`SCM_RIGHTS`). A body that is too long for a packet is sent in a memfd (see [`transport`]). The daemon may
//! disconnect and reconnect at any time. Every connection starts with `Hello`. Its snapshot contains what happened
//! in between.
//!
//! A daemon talks to the keepers of its predecessor. [`PROTOCOL`] therefore only grows. A call is sent only to a
//! keeper that supports it ([`Call::since`]). A keeper answers a call that it does not support with
//! [`Failure::Unknown`]. Events that a later version added are sent only to daemons that support them: those that
//! made the call that the event follows.

pub mod transport;

use serde::{Deserialize, Serialize};

use crate::plan::{ContainerPlan, ExecPlan, FdSlot, HookKind, Hooks, SandboxPlan, SchedulingPlan};

/// The version of these messages. Version 2 added [`Call::Attach`] and [`Call::Resize`], version 3 hooks other than
/// `createContainer` and [`Event::PoststopFailed`], version 4 the scheduling of processes, version 5 the restore of checkpoints.
pub const PROTOCOL: u32 = 5;

/// The version of the messages that added [`Event::PoststopFailed`].
pub const POSTSTOP_EVENT: u32 = 3;

/// A call of the daemon. The keeper answers it with a [`Message::Answer`] with the same id. Answers may arrive in
/// another order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the daemon, unique in the connection.
    pub id: u64,
    /// The call of the daemon.
    pub call: Call,
}

/// The part that every request has, whatever its call.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct AnyRequest {
    /// The id of the [`Request`].
    pub id: u64,
}

/// A call of the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Call {
    /// The first call of every connection. Answer: [`Outcome::Hello`].
    Hello {
        /// The daemon's [`PROTOCOL`].
        protocol: u32,
    },
    /// Starts the pause. Answer: [`Outcome::Sandbox`] with the descriptors of [`Call::Namespaces`].
    Sandbox(Box<SandboxPlan>),
    /// Requests the pod's namespaces. Answer: [`Outcome::Sandbox`]. Its descriptors are the pause's pidfd, the
    /// pod's network namespace and, if the pod has one, its user namespace, in this order.
    Namespaces,
    /// Clones a container's first process, which then runs up to the point just before exec. Answer:
    /// [`Outcome::Created`], with the process's pidfd as descriptor.
    Create {
        /// The container's id: 64 hex digits.
        container: String,
        /// The absolute path of the folder for `exit.json`.
        folder: String,
        /// The container's plan.
        plan: Box<ContainerPlan>,
    },
    /// Lets the first process exec. Answer: [`Outcome::Started`].
    Start {
        /// The container's id.
        container: String,
    },
    /// Sends a signal to the container's first process. A process that has ended is not an error.
    Signal {
        /// The container's id.
        container: String,
        /// Signal number.
        signal: i32,
    },
    /// Runs a further process in a running container. Answer: [`Outcome::ExecStarted`] with the process's pidfd (and the
    /// pty's master), later [`Event::ExecExited`].
    Exec {
        /// The container's id.
        container: String,
        /// Chosen by the daemon, unique in the pod.
        exec: String,
        /// The exec's plan.
        plan: Box<ExecPlan>,
    },
    /// Sends a signal to an exec's process. The daemon itself kills the process's children, by their cgroup.
    SignalExec {
        /// The exec's id.
        exec: String,
        /// Signal number.
        signal: i32,
    },
    /// Switches to another log file. No record is lost, duplicated or split.
    ReopenLog {
        /// The container's id.
        container: String,
        /// The file, open for appending. Older keepers ignore it and open the log's path themselves.
        #[serde(default)]
        log: Option<FdSlot>,
    },
    /// Attaches a client to a running container, until the client closes its ends. Answer: [`Outcome::Done`],
    /// later possibly [`Event::Detached`]. If the container has no standard input, or its input has ended, the
    /// client's input is closed.
    Attach {
        /// The container's id.
        container: String,
        /// Chosen by the daemon, unique in the pod.
        client: String,
        /// The client's input, which the keeper copies to the container's standard input.
        stdin: Option<FdSlot>,
        /// A socket that receives the container's output, or the terminal's. A client that does not read in time
        /// is detached.
        stdout: Option<FdSlot>,
        /// The same for the container's standard error.
        stderr: Option<FdSlot>,
    },
    /// Sets the size of a container's terminal.
    Resize {
        /// The container's id.
        container: String,
        /// Width in columns of characters.
        width: u16,
        /// Height in rows of characters.
        height: u16,
    },
    /// Removes a container from the keeper's list. If its process still runs, it is killed. The answer is sent after
    /// the `poststop` hooks have ended.
    Forget {
        /// The container's id.
        container: String,
    },
    /// Ends the pause and then the keeper itself. All containers must have ended. Processes that still run are
    /// killed.
    Shutdown,
}

impl Call {
    /// Returns the call's name for errors and logs.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "Hello",
            Self::Sandbox(_) => "Sandbox",
            Self::Namespaces => "Namespaces",
            Self::Create { .. } => "Create",
            Self::Start { .. } => "Start",
            Self::Signal { .. } => "Signal",
            Self::Exec { .. } => "Exec",
            Self::SignalExec { .. } => "SignalExec",
            Self::ReopenLog { .. } => "ReopenLog",
            Self::Attach { .. } => "Attach",
            Self::Resize { .. } => "Resize",
            Self::Forget { .. } => "Forget",
            Self::Shutdown => "Shutdown",
        }
    }

    /// Returns the version of the messages that added this call.
    #[must_use]
    pub fn since(&self) -> u32 {
        match self {
            Self::Create { plan, .. } if plan.restore.is_some() => 5,
            Self::Create { plan, .. } if plan.process.scheduling != SchedulingPlan::default() => 4,
            Self::Create { plan, .. } if plan.hooks.as_ref().is_some_and(has_new_hooks) => 3,
            Self::Attach { .. } | Self::Resize { .. } => 2,
            _ => 1,
        }
    }
}

/// Whether there are hooks that older keepers ignore.
fn has_new_hooks(hooks: &Hooks) -> bool {
    hooks.all().any(|(kind, _)| kind != HookKind::CreateContainer)
}

/// A message of the keeper.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// The answer to a request.
    Answer {
        /// The request's id.
        id: u64,
        /// The result of the call.
        result: Result<Outcome, Failure>,
    },
    /// An event. Events of one container arrive in order.
    Event(Event),
}

/// The result of a successful call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// No result beyond the success.
    Done,
    /// The answer to `Hello`.
    Hello(Snapshot),
    /// The pause runs.
    Sandbox {
        /// The pid in the host's process namespace.
        pid: i32,
    },
    /// The first process waits just before exec.
    Created {
        /// The pid in the host's process namespace.
        pid: i32,
    },
    /// The command runs.
    Started {
        /// When exec succeeded, in nanoseconds since the epoch.
        at: i64,
        /// The pid in the host's process namespace, if the processes of a checkpoint were restored in the place of the first
        /// process.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pid: Option<i32>,
    },
    /// The exec's command runs.
    ExecStarted {
        /// The pid in the host's process namespace.
        pid: i32,
    },
}

/// The reason why a call failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
pub enum Failure {
    /// The first process failed in one of its steps.
    #[error("{0}")]
    Init(InitFailure),
    /// The keeper itself failed in a system call.
    #[error("{action}: {}", std::io::Error::from_raw_os_error(*.errno))]
    System {
        /// The system call and its object.
        action: String,
        /// The number of the error (errno(3)).
        errno: i32,
    },
    /// The container, exec or pause does not exist.
    #[error("{what} not found")]
    NotFound {
        /// The object's kind and id.
        what: String,
    },
    /// The state of the object does not permit the call.
    #[error("{what} is {state}")]
    State {
        /// The object's kind and id.
        what: String,
        /// The state: `running`, `ended`, `not started`.
        state: String,
    },
    /// The keeper does not support the call: an older daemon started it.
    #[error("the pod's keeper does not support this call")]
    Unknown,
}

/// The failure of a first process. The init sends it as a fixed record, see [`Report`](transport::Report).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct InitFailure {
    /// The step that failed.
    pub step: Step,
    /// `errno`, or 0 if the failure is not one of a system call.
    pub errno: i32,
    /// The index of the mount, device, path, sysctl or limit in the plan, if the step handles several.
    pub index: Option<u32>,
    /// Further details. Often empty, at most 160 bytes.
    pub detail: String,
}

impl std::fmt::Display for InitFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.step.description())?;
        if let Some(index) = self.index {
            write!(f, " {index}")?;
        }
        if !self.detail.is_empty() {
            write!(f, " ({})", self.detail)?;
        }
        if self.errno != 0 {
            write!(f, ": {}", std::io::Error::from_raw_os_error(self.errno))?;
        }
        Ok(())
    }
}

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
    /// The process ended without a report.
    Vanished = 32, "the first process ended before exec";
}

/// The state of the keeper, for a daemon that connects.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// [`PROTOCOL`] of the keeper.
    pub protocol: u32,
    /// The keeper's own pid.
    pub keeper_pid: i32,
    /// The pause, while it runs.
    pub pause: Option<i32>,
    /// Containers that the daemon has not removed with [`Call::Forget`].
    pub containers: Vec<ContainerSnapshot>,
    /// The ids of running execs.
    pub execs: Vec<String>,
}

/// One container in a [`Snapshot`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerSnapshot {
    /// The container's id.
    pub id: String,
    /// The pid of the first process.
    pub pid: i32,
    /// The container's phase.
    pub phase: Phase,
    /// The first `poststop` hook that failed.
    #[serde(default)]
    pub poststop_failure: Option<InitFailure>,
}

/// The phase of a container, as the keeper sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// Its first process has not yet reached the gate.
    Creating,
    /// It waits at the gate.
    Created,
    /// The command runs.
    Running {
        /// When exec succeeded, in nanoseconds since the epoch.
        started_at: i64,
    },
    /// It has ended.
    Exited(ExitRecord),
}

/// The end of a container; also the content of `exit.json` in its folder.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ExitRecord {
    /// The exit code, or 128 plus the signal's number.
    pub code: i32,
    /// The signal that terminated it.
    pub signal: Option<i32>,
    /// Whether the exit code is 137 and the kernel has killed a process in the container's cgroup for lack of
    /// memory.
    pub oom_killed: bool,
    /// When exec succeeded, in nanoseconds since the epoch; 0 if it never did.
    pub started_at: i64,
    /// When the process ended, in nanoseconds since the epoch.
    pub finished_at: i64,
    /// Why the command was never executed, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<InitFailure>,
}

/// The reason why the keeper detached a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Detachment {
    /// The client's input has ended. The container's input stays open for other clients.
    InputEnded,
    /// The client does not read fast enough: the buffer of its socket is full.
    Behind,
}

/// An event, which the keeper sends to every connection unless noted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// A container's first process has ended. Its output is in the log, unless a disk hangs. The writer process
    /// has received its exit record.
    Exited {
        /// The container's id.
        container: String,
        /// How the container ended.
        record: ExitRecord,
    },
    /// An exec's process has ended.
    ExecExited {
        /// The exec's id.
        exec: String,
        /// The exit code, or 128 plus the signal's number.
        code: i32,
    },
    /// A `poststop` hook has failed. Sent after [`Event::Exited`], to daemons that support it.
    PoststopFailed {
        /// The container's id.
        container: String,
        /// The first failure.
        failure: InitFailure,
    },
    /// The pause has ended. New containers can no longer join the pod's namespaces.
    PauseExited {
        /// The exit code, or 128 plus the signal's number.
        code: i32,
    },
    /// The keeper has detached a client. The event is sent only to the connection that attached the client. It is
    /// not sent if the client closed its ends itself or its container has ended.
    Detached {
        /// The client's id.
        client: String,
        /// Why the client was detached.
        why: Detachment,
    },
}
