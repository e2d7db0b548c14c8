//! The calls of the daemon.

use serde::{Deserialize, Serialize};

use crate::plan::{ContainerPlan, ExecPlan, FdSlot, HookKind, Hooks, SandboxPlan, SchedulingPlan};

/// A call of the daemon. The keeper answers it with a [`super::Message::Answer`] with the same id. Answers may arrive in
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
    /// The first call of every connection. Answer: [`super::Outcome::Hello`].
    Hello {
        /// The daemon's [`super::PROTOCOL`].
        protocol: u32,
    },
    /// Starts the pause. Answer: [`super::Outcome::Sandbox`] with the descriptors of [`Call::Namespaces`].
    Sandbox(Box<SandboxPlan>),
    /// Requests the pod's namespaces. Answer: [`super::Outcome::Sandbox`]. Its descriptors are the pause's pidfd, the
    /// pod's network namespace and, if the pod has one, its user namespace, in this order.
    Namespaces,
    /// Clones a container's first process, which then runs up to the point just before exec. Answer:
    /// [`super::Outcome::Created`], with the process's pidfd as descriptor.
    Create {
        /// The container's id: 64 hex digits.
        container: String,
        /// The absolute path of the folder for `exit.json`.
        folder: String,
        /// The container's plan.
        plan: Box<ContainerPlan>,
    },
    /// Lets the first process exec. Answer: [`super::Outcome::Started`].
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
    /// Runs a further process in a running container. Answer: [`super::Outcome::ExecStarted`] with the process's pidfd (and the
    /// pty's master), later [`super::Event::ExecExited`].
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
    /// Attaches a client to a running container, until the client closes its ends. Answer: [`super::Outcome::Done`],
    /// later possibly [`super::Event::Detached`]. If the container has no standard input, or its input has ended, the
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
            Self::Create { plan, .. } if plan.runtime.is_some() => 6,
            Self::Exec { plan, .. } if plan.runtime.is_some() => 6,
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
