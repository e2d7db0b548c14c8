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
//!   |                                      |<-- Report: Moved (goes on as another) -|
//!   |                                      |<-- Report: Ready | Failed -------------| waits
//!   |<------------- Answer{id, Created} ---|
//!   | Request{id, Start} ----------------->|-- one byte --------------------------->| execve
//!   |<------------- Answer{id, Started} ---|<-- end of file: exec succeeded | Failed
//!   |<--- Event(Exited{record}) -----------|  waitid(P_PIDFD), the log is written
//! ```
//!
//! One message is one packet of a `SOCK_SEQPACKET` unix socket: JSON, with descriptors beside it (`SCM_RIGHTS`). A body
//! that is too long for a packet travels in a memfd (see [`transport`]). The daemon may go and come back at any
//! time: every connection starts with `Hello`, and what happened meanwhile is in the snapshot. A daemon speaks to the
//! keepers of its predecessor: [`PROTOCOL`] only ever grows, a call is sent only to a keeper that knows it
//! ([`Call::since`]), and calls that a keeper does not know are answered with [`Failure::Unknown`]. What is told unasked
//! goes to the daemons that know it: those that have made the call it follows.

pub mod transport;

use serde::{Deserialize, Serialize};

use crate::plan::{ContainerPlan, ExecPlan, FdSlot, SandboxPlan};

/// The version of these messages: 2 has brought [`Call::Attach`] and [`Call::Resize`].
pub const PROTOCOL: u32 = 2;

/// A call of the daemon, answered by an [`Answer`] with the same id; answers may overtake one another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the daemon, unique in the connection.
    pub id: u64,
    /// What to do.
    pub call: Call,
}

/// What every request has, whatever it asks.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct AnyRequest {
    /// As of a [`Request`].
    pub id: u64,
}

/// What the daemon asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Call {
    /// First on every connection. Answer: [`Outcome::Hello`].
    Hello {
        /// [`PROTOCOL`] of the daemon.
        protocol: u32,
    },
    /// Starts the pause. Answer: [`Outcome::Sandbox`] with the descriptors of [`Call::Namespaces`].
    Sandbox(Box<SandboxPlan>),
    /// Answer: [`Outcome::Sandbox`], with the pause's pidfd and its network namespace as descriptors, in this order.
    Namespaces,
    /// Clones a container's first process and takes it up to just before exec. Answer: [`Outcome::Created`], with the
    /// process's pidfd as descriptor.
    Create {
        /// 64 hex digits.
        container: String,
        /// The folder for `exit.json`, absolute.
        folder: String,
        /// What to do.
        plan: Box<ContainerPlan>,
    },
    /// Lets the first process exec. Answer: [`Outcome::Started`].
    Start {
        /// Which.
        container: String,
    },
    /// Sends a signal to the container's first process. One that has ended is no error.
    Signal {
        /// Which.
        container: String,
        /// Signal number.
        signal: i32,
    },
    /// Runs a further process in a running container. Answer: [`Outcome::ExecStarted`] with the process's pidfd (and the
    /// pty's master), later [`Event::ExecExited`].
    Exec {
        /// In which.
        container: String,
        /// Chosen by the daemon, unique in the pod.
        exec: String,
        /// What to do.
        plan: Box<ExecPlan>,
    },
    /// Kills an exec's own process; its children are the daemon's to kill, by their cgroup.
    SignalExec {
        /// Which.
        exec: String,
        /// Signal number.
        signal: i32,
    },
    /// Switches to another log file. No record is lost, doubled or split.
    ReopenLog {
        /// Whose.
        container: String,
        /// The file, open for appending. An older keeper ignores it and opens the log's path itself.
        #[serde(default)]
        log: Option<FdSlot>,
    },
    /// Attaches a client to a running container, until it closes its ends. Answer: [`Outcome::Done`], later perhaps
    /// [`Event::Detached`]. A container without standard input, or whose input has ended, closes that of the client.
    Attach {
        /// To which.
        container: String,
        /// Chosen by the daemon, unique in the pod.
        client: String,
        /// Read, and written to the container's standard input.
        stdin: Option<FdSlot>,
        /// A socket that the container's output is written to as far as its buffer takes it; a terminal's output as well.
        stdout: Option<FdSlot>,
        /// The same for its errors.
        stderr: Option<FdSlot>,
    },
    /// Tells a container's terminal its size.
    Resize {
        /// Whose.
        container: String,
        /// Columns.
        width: u16,
        /// Rows.
        height: u16,
    },
    /// Forgets a container that has ended or was never started (its process is killed).
    Forget {
        /// Which.
        container: String,
    },
    /// Ends the pause and then the keeper itself. Containers must have ended; what has not is killed.
    Shutdown,
}

impl Call {
    /// What it is called in errors and logs.
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

    /// The version of the messages that has brought this call.
    #[must_use]
    pub fn since(&self) -> u32 {
        match self {
            Self::Attach { .. } | Self::Resize { .. } => 2,
            _ => 1,
        }
    }
}

/// What the keeper sends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// The answer to a request.
    Answer {
        /// The request's.
        id: u64,
        /// How it went.
        result: Result<Outcome, Failure>,
    },
    /// Something happened. Events of one container come in order.
    Event(Event),
}

/// How a call ended when it ended well.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// Nothing to tell.
    Done,
    /// The keeper's view.
    Hello(Snapshot),
    /// The pause runs.
    Sandbox {
        /// In the host's process namespace.
        pid: i32,
    },
    /// The first process waits just before exec.
    Created {
        /// In the host's process namespace.
        pid: i32,
    },
    /// The command runs.
    Started {
        /// Nanoseconds since the epoch.
        at: i64,
    },
    /// The exec's command runs.
    ExecStarted {
        /// In the host's process namespace.
        pid: i32,
    },
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
pub enum Failure {
    /// The first process failed in one of its steps.
    #[error("{0}")]
    Init(InitFailure),
    /// The keeper itself failed in a system call.
    #[error("{action}: {}", std::io::Error::from_raw_os_error(*.errno))]
    System {
        /// What it was doing, to what.
        action: String,
        /// `errno`.
        errno: i32,
    },
    /// No such container, exec or pause.
    #[error("{what} is not known to the keeper")]
    NotFound {
        /// Its kind and id.
        what: String,
    },
    /// The object is in no state for this call.
    #[error("{what} is {state}")]
    State {
        /// Its kind and id.
        what: String,
        /// What it is: `running`, `ended`, `not started`.
        state: String,
    },
    /// This keeper does not know the call: it was started by an older daemon.
    #[error("the pod's keeper does not know this call")]
    Unknown,
}

/// The failure of a first process: a fixed record on the wire from the init, see [`Report`](transport::Report).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct InitFailure {
    /// Where.
    pub step: Step,
    /// `errno`, 0 where no system call failed.
    pub errno: i32,
    /// Which mount, device, path, sysctl or limit of the plan, where the step has several.
    pub index: Option<u32>,
    /// What else is to be said; often empty, at most 160 bytes.
    pub detail: String,
}

impl std::fmt::Display for InitFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.step.words())?;
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
    ($($(#[$doc:meta])* $name:ident = $number:literal, $words:literal;)*) => {
        /// The steps of a first process, in the order in which a container walks them. The numbers are the wire's.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[repr(u32)]
        pub enum Step {
            $($(#[$doc])* $name = $number,)*
        }

        impl Step {
            /// The step of a number from the wire.
            #[must_use]
            pub fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }

            /// Its number on the wire.
            #[must_use]
            pub fn number(self) -> u32 {
                match self { $(Self::$name => $number,)* }
            }

            /// What the step does, as the start of an error message.
            #[must_use]
            pub fn words(self) -> &'static str {
                match self { $(Self::$name => $words,)* }
            }
        }
    };
}

steps! {
    /// clone3(2) itself.
    Clone = 1, "clone the first process";
    /// Joining the cgroup.
    Cgroup = 2, "join the cgroup";
    /// Opening the sources of bind mounts.
    OpenSource = 3, "open the source of mount";
    /// The pod's shared memory.
    PodShm = 4, "open the pod's shared memory and files";
    /// setns(2) into the pod's namespaces.
    JoinNamespaces = 5, "join the pod's namespaces";
    /// unshare(2) of what remains.
    Unshare = 6, "make the container's namespaces";
    /// Stopping propagation to the host.
    PrivateMounts = 7, "separate the container's mounts from the host's";
    /// Attaching the root filesystem.
    AttachRootfs = 8, "attach the root filesystem";
    /// Making or finding the target of a mount.
    MountTarget = 9, "prepare the target of mount";
    /// The mount.
    Mount = 10, "mount";
    /// Its attributes or propagation.
    MountAttributes = 11, "set the attributes of mount";
    /// A device node.
    Device = 12, "make device";
    /// A folder in the root filesystem.
    Directory = 13, "make directory";
    /// A sysctl.
    Sysctl = 14, "set sysctl";
    /// A read-only path.
    ReadonlyPath = 15, "make read-only path";
    /// A masked path.
    MaskedPath = 16, "mask path";
    /// pivot_root(2).
    PivotRoot = 17, "pivot_root";
    /// Read-only root, propagation of `/`.
    RootAttributes = 18, "set the attributes of the root filesystem";
    /// The hostname.
    Hostname = 19, "set the hostname";
    /// The pseudo terminal.
    Terminal = 20, "make the terminal";
    /// Standard streams, session.
    Stdio = 21, "set up the standard streams";
    /// A resource limit.
    Rlimit = 22, "set resource limit";
    /// oom_score_adj.
    OomScore = 23, "set oom_score_adj";
    /// The label of a security module.
    SecurityLabel = 24, "set the security label";
    /// Groups, gid, uid.
    Credentials = 25, "set user and groups";
    /// Capability sets.
    Capabilities = 26, "set capabilities";
    /// no_new_privs.
    NoNewPrivs = 27, "set no_new_privs";
    /// The working folder.
    WorkingDirectory = 28, "change to the working directory";
    /// Closing what is not the container's.
    CloseDescriptors = 29, "close descriptors";
    /// The seccomp filter.
    Seccomp = 30, "load the seccomp filter";
    /// execve(2).
    Exec = 31, "exec";
    /// A hook of the container.
    Hook = 34, "run hook";
    /// Propagation between a volume and the host.
    Peers = 33, "propagate mount";
    /// The procfs of a PID namespace that is shared.
    PodProc = 35, "open the procfs of the shared PID namespace";
    /// The session keyring.
    Keyring = 36, "join the session keyring";
    /// The process ended before it told anything.
    Vanished = 32, "the first process ended before exec";
}

/// Everything the keeper knows, for a daemon that has come (back).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// [`PROTOCOL`] of the keeper.
    pub protocol: u32,
    /// The keeper's own pid.
    pub keeper_pid: i32,
    /// The pause, while it runs.
    pub pause: Option<i32>,
    /// Containers that have not been forgotten.
    pub containers: Vec<ContainerSnapshot>,
    /// Ids of execs that run.
    pub execs: Vec<String>,
}

/// One container in a [`Snapshot`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerSnapshot {
    /// Which.
    pub id: String,
    /// The first process.
    pub pid: i32,
    /// How far it is.
    pub phase: Phase,
}

/// How far a container is, as the keeper sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// Its first process is still on its way to the gate.
    Creating,
    /// It waits at the gate.
    Created,
    /// The command runs.
    Running {
        /// Since, in nanoseconds since the epoch.
        started_at: i64,
    },
    /// It has ended.
    Exited(ExitRecord),
}

/// How a container ended; also the content of `exit.json` in its folder.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ExitRecord {
    /// The exit code, or 128 plus the signal's number.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The kernel killed in this cgroup for lack of memory.
    pub oom_killed: bool,
    /// When exec succeeded, in nanoseconds since the epoch; 0 if it never did.
    pub started_at: i64,
    /// In nanoseconds since the epoch.
    pub finished_at: i64,
    /// Why it never became its command, where that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<InitFailure>,
}

/// Why a client is attached no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Detachment {
    /// Its input has ended, and that of the container stays open for others.
    InputEnded,
    /// It is too far behind with reading: the buffer of its socket is full.
    Behind,
}

/// What the keeper tells unasked, to every connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// A container's first process has ended; its output is in the log and its record on disk.
    Exited {
        /// Which.
        container: String,
        /// How.
        record: ExitRecord,
    },
    /// An exec's process has ended.
    ExecExited {
        /// Which.
        exec: String,
        /// The exit code, or 128 plus the signal's number.
        code: i32,
    },
    /// The pause has ended: the pod's namespaces are lost for new containers.
    PauseExited {
        /// As of an [`ExitRecord`].
        code: i32,
    },
    /// A client is attached no more. Told only to the connection that has attached it; a client that closed its ends
    /// itself, or whose container has ended, is not told of.
    Detached {
        /// Which.
        client: String,
        /// Why.
        why: Detachment,
    },
}
