//! Hooks: programs that run at points of a container's life (OCI runtime specification, "POSIX-platform Hooks").

use std::time::Duration;

use serde::{Deserialize, Serialize};

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
