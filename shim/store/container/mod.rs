//! A container: its record on disk, its state and the only functions that change it.
//!
//! * [`state`]: the states and the transitions between them; [`record`]: the record

pub mod record;
pub mod state;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::event_cursor::EventCursor;
use super::file::FileError;
use super::name::ContainerName;
use super::rate::Rate;
use super::record::Record;
use super::spec::SpecStore;
use super::writer::RecordWriter;
use crate::ids::{ContainerId, PodId};

pub use record::{ContainerRecord, ContainerRuntime, RecordedUser};
pub use state::{ContainerState, Exit, ExitReason};

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

    /// Returns the OCI runtime that runs it; none if that is berth's own.
    #[must_use]
    pub fn runtime(&self) -> Option<ContainerRuntime> {
        self.with(|record| record.runtime.clone())
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
