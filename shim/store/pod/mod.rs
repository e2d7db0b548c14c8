//! A pod sandbox: its record on disk, its state and the only functions that change it.
//!
//! * [`state`]: the states and the transitions between them; [`record`]: the record

pub mod record;
pub mod state;

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_proto::v1::{NamespaceMode, NamespaceOption};
use tokio::sync::watch;

use super::event_cursor::EventCursor;
use super::file::FileError;
use super::name::PodName;
use super::rate::Rate;
use super::record::Record;
use super::writer::RecordWriter;
use crate::ids::{ContainerId, PodId};
use crate::keeper::{KeeperClient, KeeperUpdates};
use crate::oci::pod_modes;

pub use record::{FilesLocation, PodRecord, PodResources};
pub use state::PodState;

/// A pod in memory.
#[derive(Debug)]
pub struct Pod {
    /// The pod's id.
    pub id: PodId,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// The cursor of the pod's events.
    pub event_cursor: EventCursor,
    /// The pod's CPU usage.
    pub rate: Rate,
    record: Record<PodRecord>,
    changed: watch::Sender<()>,
    link: Mutex<Option<KeeperClient>>,
    /// The updates of a keeper that is not followed yet.
    updates: Mutex<Option<KeeperUpdates>>,
    netns: Mutex<Option<OwnedFd>>,
    userns: Mutex<Option<OwnedFd>>,
    /// Containers that are being created.
    creating: watch::Sender<Vec<ContainerId>>,
    /// The keeper's state was taken over after the daemon's start.
    reconciled: watch::Sender<bool>,
    /// The keeper may run execs of an earlier daemon.
    from_earlier_daemon: AtomicBool,
    /// The pause or the keeper has ended.
    lost: AtomicBool,
    /// NRI plugins were notified of the stop.
    stop_notified: AtomicBool,
}

/// Marks a container as being created until it is dropped.
#[derive(Debug)]
pub struct CreationGuard {
    pod: Arc<Pod>,
    container: ContainerId,
}

impl Drop for CreationGuard {
    fn drop(&mut self) {
        self.pod.creating.send_modify(|creating| creating.retain(|id| *id != self.container));
    }
}

impl Pod {
    /// Creates a pod; its record is stored in `file`.
    #[must_use]
    pub fn new(record: PodRecord, file: PathBuf, writer: RecordWriter) -> Self {
        Self {
            id: record.id.clone(),
            created_at: record.created_at,
            event_cursor: EventCursor::at(record.state.stored_event_level()),
            rate: Rate::default(),
            record: Record::new(record, file, writer),
            changed: watch::Sender::new(()),
            link: Mutex::new(None),
            updates: Mutex::new(None),
            netns: Mutex::new(None),
            userns: Mutex::new(None),
            creating: watch::Sender::default(),
            reconciled: watch::Sender::new(true),
            from_earlier_daemon: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            stop_notified: AtomicBool::new(false),
        }
    }

    /// Marks the pod as run by an earlier daemon: its keeper's state has to be taken over.
    pub fn set_from_earlier_daemon(&self) {
        self.from_earlier_daemon.store(true, Ordering::Release);
        self.set_reconciled(false);
    }

    /// Returns true once if the execs of an earlier daemon have to be ended.
    #[must_use]
    pub fn take_from_earlier_daemon(&self) -> bool {
        self.from_earlier_daemon.swap(false, Ordering::AcqRel)
    }

    /// Returns true once, for the notification that the pod is being stopped: a stop can be tried again.
    #[must_use]
    pub fn first_stop(&self) -> bool {
        !self.stop_notified.swap(true, Ordering::AcqRel)
    }

    /// Marks the pod as lost: its pause or its keeper has ended.
    pub fn set_lost(&self) {
        self.lost.store(true, Ordering::Release);
    }

    /// Returns whether the pause or the keeper has ended. Such a pod cannot become ready.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Marks a container as being created in the pod, so that a stop of the pod waits for it.
    #[must_use]
    pub fn begin_creating(self: &Arc<Self>, container: ContainerId) -> CreationGuard {
        self.creating.send_modify(|creating| creating.push(container.clone()));
        CreationGuard { pod: self.clone(), container }
    }

    /// Returns the containers that are being created.
    #[must_use]
    pub fn creating(&self) -> Vec<ContainerId> {
        self.creating.borrow().clone()
    }

    /// Waits up to `timeout` until no container is being created. Returns those that still are.
    pub async fn wait_for_creations(&self, timeout: Duration) -> Vec<ContainerId> {
        let mut creating = self.creating.subscribe();
        let none = creating.wait_for(Vec::is_empty);
        drop(tokio::time::timeout(timeout, none).await);
        self.creating.borrow().clone()
    }

    /// Sets whether the keeper's state was taken over.
    pub fn set_reconciled(&self, reconciled: bool) {
        self.reconciled.send_replace(reconciled);
    }

    /// Returns whether the keeper's state was taken over.
    #[must_use]
    pub fn is_reconciled_now(&self) -> bool {
        *self.reconciled.borrow()
    }

    /// Waits until the keeper's state was taken over.
    pub async fn is_reconciled(&self) {
        // `self` owns the sender, so this cannot fail.
        drop(self.reconciled.subscribe().wait_for(|reconciled| *reconciled).await);
    }

    /// Returns a copy of the record.
    #[must_use]
    pub fn record(&self) -> PodRecord {
        self.record.get()
    }

    /// Calls `look` with the record, without copying it.
    pub fn with<T>(&self, look: impl FnOnce(&PodRecord) -> T) -> T {
        self.record.with(look)
    }

    /// Records an intent: on disk first, then in memory. Blocks as long as the disk does.
    ///
    /// # Errors
    /// The file cannot be written; the record is unchanged.
    pub fn intend(&self, change: impl Fn(&mut PodRecord)) -> Result<(), FileError> {
        self.record.intend(change)?;
        self.changed.send_replace(());
        Ok(())
    }

    /// Changes the state to reflect a fact: visible immediately, written as soon as the disk accepts it.
    pub fn transition(&self, transition: impl FnOnce(&PodState) -> PodState) {
        self.record.apply(|record| record.state = transition(&record.state));
        self.changed.send_replace(());
    }

    /// Stops writing the record, since the pod is being removed.
    pub fn stop_writing_record(&self) {
        self.record.stop_writing();
    }

    /// Returns the current state.
    #[must_use]
    pub fn state(&self) -> PodState {
        self.with(|record| record.state.clone())
    }

    /// Waits until the pod is lost or being stopped.
    pub async fn stopping(&self) {
        let mut changes = self.changed.subscribe();
        while !matches!(self.state(), PodState::Lost | PodState::NotReady { .. }) {
            // `self` owns the sender, so this cannot fail.
            drop(changes.changed().await);
        }
    }

    /// Returns the name that the client gave.
    #[must_use]
    pub fn name(&self) -> PodName {
        self.with(|record| PodName::from(&record.config.metadata.clone().unwrap_or_default()))
    }

    /// Returns the client of the pod's keeper, if it has one.
    #[must_use]
    pub fn link(&self) -> Option<KeeperClient> {
        lock(&self.link).clone()
    }

    /// Sets or drops the client of the pod's keeper.
    pub fn set_link(&self, link: Option<KeeperClient>) {
        *lock(&self.link) = link;
    }

    /// Stores the keeper's updates until the keeper is followed.
    pub fn put_updates(&self, updates: KeeperUpdates) {
        *lock(&self.updates) = Some(updates);
    }

    /// Takes the stored updates of a keeper that is not followed yet.
    pub fn take_updates(&self) -> Option<KeeperUpdates> {
        lock(&self.updates).take()
    }

    /// Returns the pod's network namespace while the pause runs.
    #[must_use]
    pub fn netns(&self) -> Option<OwnedFd> {
        lock(&self.netns).as_ref().and_then(|fd| fd.as_fd().try_clone_to_owned().ok())
    }

    /// Sets or drops the descriptor of the network namespace, which keeps the namespace alive.
    pub fn set_netns(&self, netns: Option<OwnedFd>) {
        *lock(&self.netns) = netns;
    }

    /// Returns the pod's user namespace while the pause runs, if it has one.
    #[must_use]
    pub fn userns(&self) -> Option<OwnedFd> {
        lock(&self.userns).as_ref().and_then(|fd| fd.as_fd().try_clone_to_owned().ok())
    }

    /// Sets or drops the user namespace.
    pub fn set_userns(&self, userns: Option<OwnedFd>) {
        *lock(&self.userns) = userns;
    }

    /// Returns the requested namespace modes; unset ones are `POD`, the zero value of the CRI.
    #[must_use]
    pub fn namespaces(&self) -> NamespaceOption {
        self.with(|record| pod_modes(&record.config))
    }

    /// Returns whether the pod uses the host's network.
    #[must_use]
    pub fn host_network(&self) -> bool {
        self.namespaces().network() == NamespaceMode::Node
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
