//! A container: its record on disk, its state and the only functions that change it.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_proto::v1::{ContainerConfig, ImageSpec, LinuxContainerResources};
use berth_runtime::wire::ExitRecord;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::event_cursor::{EventCursor, Level};
use super::file::FileError;
use super::name::ContainerName;
use super::rate::Rate;
use super::record::Record;
use super::spec::SpecStore;
use super::writer::RecordWriter;
use crate::ids::{ContainerId, PodId};

/// The state of a container. The data that belongs to a state is in its variant, so that both cannot
/// disagree.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ContainerState {
    /// CreateContainer is in progress. Not shown to clients; recovery undoes it.
    Creating,
    /// Init waits at the gate, just before its exec.
    Created {
        /// The pid in the host's pid namespace.
        pid: i32,
    },
    /// The command runs.
    Running {
        /// The pid in the host's pid namespace.
        pid: i32,
        /// Nanoseconds since the epoch.
        started_at: i64,
    },
    /// It has ended.
    Exited(Exit),
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code, or 128 plus the signal.
    pub code: i32,
    /// The reason that `kubectl describe` shows.
    pub reason: ExitReason,
    /// A message for people.
    pub message: String,
    /// Nanoseconds since the epoch; 0 if the command never ran.
    pub started_at: i64,
    /// Nanoseconds since the epoch.
    pub finished_at: i64,
}

/// Why a container ended (CRI `ContainerStatus.reason`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ExitReason {
    /// Exit code 0.
    Completed,
    /// Any other exit code.
    Error,
    /// The kernel killed it for lack of memory.
    #[serde(rename = "OOMKilled")]
    OomKilled,
    /// The command could not be run.
    #[serde(alias = "ContainerCannotRun")]
    StartError,
    /// The end was not observed: the host went down or the keeper was killed.
    ContainerStatusUnknown,
}

impl ExitReason {
    /// Returns the CRI's name of the reason.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "Completed",
            Self::Error => "Error",
            Self::OomKilled => "OOMKilled",
            Self::StartError => "StartError",
            Self::ContainerStatusUnknown => "ContainerStatusUnknown",
        }
    }
}

impl ContainerState {
    /// Returns how far a container in this state is in its life cycle, for events.
    #[must_use]
    pub fn event_level(&self) -> Level {
        match self {
            Self::Creating => Level::Nothing,
            Self::Created { .. } => Level::Created,
            Self::Running { .. } => Level::Started,
            Self::Exited(exit) if exit.started_at == 0 => Level::NeverStarted,
            Self::Exited(_) => Level::Stopped,
        }
    }

    /// Returns the state with an addition to the message of the exit. A repeated one is not added.
    #[must_use]
    pub fn with_exit_note(&self, note: &str) -> Self {
        match self {
            Self::Exited(exit) if !exit.message.contains(note) => {
                let separator = if exit.message.is_empty() { "" } else { "; " };
                Self::Exited(Exit { message: format!("{}{separator}{note}", exit.message), ..exit.clone() })
            }
            _ => self.clone(),
        }
    }

    /// Returns the state after init has reached the gate.
    #[must_use]
    pub fn created(&self, pid: i32) -> Self {
        match self {
            Self::Creating => Self::Created { pid },
            _ => self.clone(),
        }
    }

    /// Returns the state after the command was started. An exited container stays exited: the reports of
    /// start and exit can arrive out of order.
    #[must_use]
    pub fn started(&self, started_at: i64) -> Self {
        match self {
            Self::Created { pid } => Self::Running { pid: *pid, started_at },
            _ => self.clone(),
        }
    }

    /// Returns the state of a running container whose first process was replaced by that of a restored checkpoint.
    #[must_use]
    pub fn with_pid(self, pid: Option<i32>) -> Self {
        match (self, pid) {
            (Self::Running { started_at, .. }, Some(pid)) => Self::Running { pid, started_at },
            (other, _) => other,
        }
    }

    /// Returns the state after an exit. The first reported exit stands.
    #[must_use]
    pub fn exited(&self, exit: Exit) -> Self {
        match self {
            Self::Exited(_) => self.clone(),
            _ => Self::Exited(exit),
        }
    }

    /// Returns the pid of its process, if it has one.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        match self {
            Self::Created { pid } | Self::Running { pid, .. } => Some(*pid),
            Self::Creating | Self::Exited(_) => None,
        }
    }
}

impl Exit {
    /// Converts the keeper's record of an exit.
    #[must_use]
    pub fn from_record(record: &ExitRecord) -> Self {
        let reason = match (record.oom_killed, record.code) {
            (true, _) => ExitReason::OomKilled,
            (false, 0) => ExitReason::Completed,
            (false, _) => ExitReason::Error,
        };
        Self {
            code: record.code,
            reason,
            message: String::new(),
            started_at: record.started_at,
            finished_at: record.finished_at,
        }
    }

    /// An exit of a container that was killed while its exit was not observed.
    #[must_use]
    pub fn killed(started_at: i64, message: &str) -> Self {
        const SIGKILL: i32 = 9;
        Self {
            code: 128 + SIGKILL,
            reason: ExitReason::Error,
            message: message.to_owned(),
            started_at,
            finished_at: crate::clock::now(),
        }
    }

    /// An exit that was not observed.
    #[must_use]
    pub fn unknown(started_at: i64, message: &str) -> Self {
        Self {
            code: 255,
            reason: ExitReason::ContainerStatusUnknown,
            message: message.to_owned(),
            started_at,
            finished_at: crate::clock::now(),
        }
    }
}

/// A container as it is stored on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// The container's id.
    pub id: ContainerId,
    /// The id of its pod.
    pub pod: PodId,
    /// The config that the client sent.
    pub config: ContainerConfig,
    /// The id of its image.
    pub image_id: String,
    /// The value of `ContainerStatus.image_ref`: the image's digest reference, or its id.
    pub image_ref: String,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// As [`PodRecord::boot_id`](super::PodRecord::boot_id).
    pub boot_id: String,
    /// The absolute path of the log file.
    pub log_path: Option<String>,
    /// Its cgroup, as a path in every hierarchy.
    pub cgroup: String,
    /// The signal that StopContainer sends.
    pub stop_signal: i32,
    /// The user it runs as, resolved in the image.
    pub user: RecordedUser,
    /// The current limits; the config keeps those that the client sent. None if an older daemon created the
    /// container.
    #[serde(default)]
    pub resources: Option<LinuxContainerResources>,
    /// Annotations that the client sent with its last update of the limits.
    #[serde(default)]
    pub update_annotations: BTreeMap<String, String>,
    /// The value of `ContainerStatus.image`: the image as the user named it. None if an older daemon created
    /// the container.
    #[serde(default)]
    pub image: Option<ImageSpec>,
    /// The container's state.
    pub state: ContainerState,
}

impl ContainerRecord {
    /// Returns the current limits.
    #[must_use]
    pub fn limits(&self) -> LinuxContainerResources {
        let requested = || self.config.linux.as_ref().and_then(|linux| linux.resources.clone());
        self.resources.clone().or_else(requested).unwrap_or_default()
    }
}

/// A user as resolved in the image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedUser {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// A container in memory.
#[derive(Debug)]
pub struct Container {
    /// The container's id.
    pub id: ContainerId,
    /// The id of its pod.
    pub pod: PodId,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    folder: PathBuf,
    record: Record<ContainerRecord>,
    changed: watch::Sender<()>,
    /// The lock of operations, which wait in order of arrival. Start, Update and Remove hold it exclusively;
    /// starting execs share it. Stop does not take it.
    pub turn: Arc<tokio::sync::RwLock<()>>,
    /// The container's CPU usage.
    pub rate: Rate,
    /// The cursor of the container's events.
    pub event_cursor: EventCursor,
    /// The OCI spec that the container was created from.
    pub spec: SpecStore,
    /// The number of OOM kills that were reported.
    pub oom_kills: AtomicU64,
    /// Execs that ended and left processes running, so that their cgroups still exist.
    leftover_execs: Mutex<VecDeque<String>>,
}

impl Container {
    /// Creates a container; its record is stored in `folder`.
    #[must_use]
    pub fn new(record: ContainerRecord, folder: PathBuf, writer: RecordWriter) -> Self {
        Self {
            id: record.id.clone(),
            pod: record.pod.clone(),
            created_at: record.created_at,
            event_cursor: EventCursor::at(record.state.event_level()),
            spec: SpecStore::new(folder.join("config.json")),
            record: Record::new(record, Self::record_file(&folder), writer),
            folder,
            changed: watch::Sender::new(()),
            turn: Arc::default(),
            rate: Rate::default(),
            oom_kills: AtomicU64::new(0),
            leftover_execs: Mutex::default(),
        }
    }

    /// Takes up to `most` of the execs that left processes running, oldest first, to check them again.
    pub(crate) fn take_leftover_execs(&self, most: usize) -> Vec<String> {
        let mut left = lock(&self.leftover_execs);
        let most = most.min(left.len());
        left.drain(..most).collect()
    }

    /// Adds execs that left processes running.
    pub(crate) fn put_leftover_execs(&self, execs: Vec<String>) {
        lock(&self.leftover_execs).extend(execs);
    }

    /// Returns a copy of the record.
    #[must_use]
    pub fn record(&self) -> ContainerRecord {
        self.record.get()
    }

    /// Calls `look` with the record, without copying it.
    pub fn with<T>(&self, look: impl FnOnce(&ContainerRecord) -> T) -> T {
        self.record.with(look)
    }

    /// Returns its persistent folder.
    #[must_use]
    pub fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    /// Returns the path of the record in a container's folder.
    #[must_use]
    pub fn record_file(folder: &std::path::Path) -> PathBuf {
        folder.join("container.json")
    }

    /// Records an intent: on disk first, then in memory. Blocks as long as the disk does.
    ///
    /// # Errors
    /// The file cannot be written; the record is unchanged.
    pub fn intend(&self, change: impl Fn(&mut ContainerRecord)) -> Result<(), FileError> {
        self.record.intend(change)?;
        self.changed.send_replace(());
        Ok(())
    }

    /// Changes the state to reflect a fact: visible immediately, written as soon as the disk accepts it.
    pub fn transition(&self, transition: impl FnOnce(&ContainerState) -> ContainerState) {
        self.record.apply(|record| record.state = transition(&record.state));
        self.changed.send_replace(());
    }

    /// Stops writing the record, since the container is being removed.
    pub fn stop_writing_record(&self) {
        self.record.stop_writing();
    }

    /// Returns the current state.
    #[must_use]
    pub fn state(&self) -> ContainerState {
        self.with(|record| record.state.clone())
    }

    /// Waits until the container has exited.
    pub async fn ended(&self) -> Exit {
        let mut changes = self.changed.subscribe();
        loop {
            if let ContainerState::Exited(exit) = self.state() {
                return exit;
            }
            // `self` owns the sender, so this cannot fail.
            drop(changes.changed().await);
        }
    }

    /// Returns the name that the client gave.
    #[must_use]
    pub fn name(&self) -> ContainerName {
        self.with(|record| ContainerName::from(&record.config.metadata.clone().unwrap_or_default()))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(code: i32, oom_killed: bool) -> Exit {
        Exit::from_record(&ExitRecord {
            code,
            signal: None,
            oom_killed,
            started_at: 1,
            finished_at: 2,
            failure: None,
        })
    }

    #[test]
    fn reasons_are_those_of_the_kubelet() {
        assert_eq!(exit(0, false).reason.as_str(), "Completed");
        assert_eq!(exit(3, false).reason.as_str(), "Error");
        assert_eq!(exit(137, true).reason.as_str(), "OOMKilled");
    }

    #[test]
    fn the_first_exit_stands() {
        let ended = ContainerState::Running { pid: 7, started_at: 1 }.exited(exit(3, false));
        assert_eq!(ended.exited(exit(0, false)), ended);
        assert_eq!(ended.started(9), ended, "the reports of start and exit can arrive out of order");
    }

    #[test]
    fn only_a_created_container_starts() {
        assert_eq!(ContainerState::Creating.started(1), ContainerState::Creating);
        let created = ContainerState::Creating.created(7);
        assert_eq!(created.started(1), ContainerState::Running { pid: 7, started_at: 1 });
    }
}
