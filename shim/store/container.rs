//! A container: its record on disk, its state and the only functions that change it.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_proto::v1::{ContainerConfig, ImageSpec, LinuxContainerResources};
use berth_runtime::wire::ExitRecord;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::file::FileError;
use super::name::ContainerName;
use super::rate::Rate;
use super::record::Record;
use super::spec::SpecStore;
use super::writer::RecordWriter;
use crate::event::{Level, Told};
use crate::ids::{ContainerId, PodId};

/// Where a container is in its life. The evidence for a state is in its variant, so that both cannot disagree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// CreateContainer is at work. Not shown to clients; a daemon that finds it at start takes everything back.
    Creating,
    /// The first process waits just before exec.
    Created {
        /// In the host's process namespace.
        pid: i32,
    },
    /// The command runs.
    Running {
        /// In the host's process namespace.
        pid: i32,
        /// Nanoseconds since the epoch.
        started_at: i64,
    },
    /// It has ended.
    Exited(Exit),
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code, or 128 plus the signal.
    pub code: i32,
    /// Why, in the word that `kubectl describe` shows.
    pub reason: ExitReason,
    /// Why, in words.
    pub message: String,
    /// Nanoseconds since the epoch; 0 if the command never ran.
    pub started_at: i64,
    /// Nanoseconds since the epoch.
    pub finished_at: i64,
}

/// Why a container ended (CRI `ContainerStatus.reason`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// How it ended is not known: the host went down or the keeper was killed.
    ContainerStatusUnknown,
}

impl ExitReason {
    /// The word.
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
    /// The first process has reached the gate.
    #[must_use]
    pub fn created(&self, pid: i32) -> Self {
        match self {
            Self::Creating => Self::Created { pid },
            _ => self.clone(),
        }
    }

    /// The command runs. One that has already ended stays ended: the news of both can cross.
    #[must_use]
    pub fn started(&self, started_at: i64) -> Self {
        match self {
            Self::Created { pid } => Self::Running { pid: *pid, started_at },
            _ => self.clone(),
        }
    }

    /// It has ended; the first news of that stands.
    #[must_use]
    pub fn exited(&self, exit: Exit) -> Self {
        match self {
            Self::Exited(_) => self.clone(),
            _ => Self::Exited(exit),
        }
    }

    /// Its process, while it has one.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        match self {
            Self::Created { pid } | Self::Running { pid, .. } => Some(*pid),
            Self::Creating | Self::Exited(_) => None,
        }
    }
}

impl Exit {
    /// What the keeper saw, in the CRI's words.
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

    /// It was killed, and nobody saw its end.
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

    /// Nobody saw how it ended.
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

/// What is on disk of a container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Its id.
    pub id: ContainerId,
    /// Its pod.
    pub pod: PodId,
    /// As the client gave it.
    pub config: ContainerConfig,
    /// Id of its image.
    pub image_id: String,
    /// What `ContainerStatus.image_ref` says: the image's digest reference, or its id.
    pub image_ref: String,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// As [`PodRecord::boot_id`](super::PodRecord::boot_id).
    pub boot_id: String,
    /// The log file, absolute.
    pub log_path: Option<String>,
    /// Its cgroup, as a path in every hierarchy.
    pub cgroup: String,
    /// What StopContainer sends.
    pub stop_signal: i32,
    /// The user it runs as, resolved in the image.
    pub user: RecordedUser,
    /// Its limits as they hold; the config stays what the client gave. None of a container that an older daemon has made.
    #[serde(default)]
    pub resources: Option<LinuxContainerResources>,
    /// What the client has said of its limits beside these when it changed them.
    #[serde(default)]
    pub update_annotations: BTreeMap<String, String>,
    /// What `ContainerStatus.image` says: the image as people call it. None of a container that an older daemon has made.
    #[serde(default)]
    pub image: Option<ImageSpec>,
    /// Where it is.
    pub state: ContainerState,
}

impl ContainerRecord {
    /// The limits as they hold.
    #[must_use]
    pub fn limits(&self) -> LinuxContainerResources {
        let asked = || self.config.linux.as_ref().and_then(|linux| linux.resources.clone());
        self.resources.clone().or_else(asked).unwrap_or_default()
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
    /// Its id.
    pub id: ContainerId,
    /// Its pod.
    pub pod: PodId,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    folder: PathBuf,
    record: Record<ContainerRecord>,
    changed: watch::Sender<()>,
    /// Operations take their turn in the order in which they come: Start, Update and Remove alone, execs that start
    /// together. Stop does not wait.
    pub turn: Arc<tokio::sync::RwLock<()>>,
    /// How much of a core it uses.
    pub rate: Rate,
    /// What has been told of it.
    pub told: Told,
    /// The OCI spec that it was made from.
    pub spec: SpecStore,
    /// Execs that have ended and left something running, which is all that their cgroups are there for.
    left: Mutex<VecDeque<String>>,
}

impl Container {
    /// A container whose record is kept in `folder`.
    #[must_use]
    pub fn new(record: ContainerRecord, folder: PathBuf, writer: RecordWriter) -> Self {
        Self {
            id: record.id.clone(),
            pod: record.pod.clone(),
            created_at: record.created_at,
            told: Told::already(Level::of_container(&record.state)),
            spec: SpecStore::new(folder.join("config.json")),
            record: Record::new(record, Self::record_file(&folder), writer),
            folder,
            changed: watch::Sender::new(()),
            turn: Arc::default(),
            rate: Rate::default(),
            left: Mutex::default(),
        }
    }

    /// Takes up to `most` of the execs that have left something running, the oldest first, to look whether it still does.
    pub(crate) fn take_left(&self, most: usize) -> Vec<String> {
        let mut left = lock(&self.left);
        let most = most.min(left.len());
        left.drain(..most).collect()
    }

    /// These execs have left something running.
    pub(crate) fn put_left(&self, execs: Vec<String>) {
        lock(&self.left).extend(execs);
    }

    /// The record as it is now.
    #[must_use]
    pub fn record(&self) -> ContainerRecord {
        self.record.get()
    }

    /// Looks at the record without a copy.
    pub fn with<T>(&self, look: impl FnOnce(&ContainerRecord) -> T) -> T {
        self.record.with(look)
    }

    /// Its persistent folder.
    #[must_use]
    pub fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    /// Where a container's record is in its folder.
    #[must_use]
    pub fn record_file(folder: &std::path::Path) -> PathBuf {
        folder.join("container.json")
    }

    /// Changes what is intended: on disk first. It blocks as long as the disk does.
    ///
    /// # Errors
    /// The file cannot be written; the record stays.
    pub fn intend(&self, change: impl Fn(&mut ContainerRecord)) -> Result<(), FileError> {
        self.record.intend(change)?;
        self.changed.send_replace(());
        Ok(())
    }

    /// The state has changed: for everyone to see at once, on disk as soon as that takes it.
    pub fn happened(&self, transition: impl FnOnce(&ContainerState) -> ContainerState) {
        self.record.happened(|record| record.state = transition(&record.state));
        self.changed.send_replace(());
    }

    /// The container is being removed: its record is not written any more.
    pub fn give_up_record(&self) {
        self.record.give_up();
    }

    /// The state as it is now.
    #[must_use]
    pub fn state(&self) -> ContainerState {
        self.with(|record| record.state.clone())
    }

    /// Waits until the container has ended.
    pub async fn ended(&self) -> Exit {
        let mut changes = self.changed.subscribe();
        loop {
            if let ContainerState::Exited(exit) = self.state() {
                return exit;
            }
            // The sender lives in `self`: this cannot fail while `self` is borrowed.
            drop(changes.changed().await);
        }
    }

    /// What the client calls it.
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
    fn the_first_end_stands() {
        let ended = ContainerState::Running { pid: 7, started_at: 1 }.exited(exit(3, false));
        assert_eq!(ended.exited(exit(0, false)), ended);
        assert_eq!(ended.started(9), ended, "the news of start and end can cross");
    }

    #[test]
    fn only_a_created_container_starts() {
        assert_eq!(ContainerState::Creating.started(1), ContainerState::Creating);
        let created = ContainerState::Creating.created(7);
        assert_eq!(created.started(1), ContainerState::Running { pid: 7, started_at: 1 });
    }
}
