//! A pod sandbox: its record on disk, its state and the only functions that change it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_proto::v1::{LinuxContainerResources, NamespaceMode, NamespaceOption, PodSandboxConfig};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::file::FileError;
use super::name::PodName;
use super::rate::Rate;
use super::record::Record;
use super::writer::RecordWriter;
use crate::event::{Level, Told};
use crate::ids::{ContainerId, PodId};
use crate::keeper::{Link, NewsReceiver};
use crate::lsm::selinux::Labels;
use crate::spec::PodFiles;

/// Where a pod is in its life.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PodState {
    /// RunPodSandbox is at work. Not shown to clients; a daemon that finds it at start takes everything back.
    Creating,
    /// The pause runs and the network is attached.
    Ready {
        /// The pause, in the host's process namespace.
        pause_pid: i32,
    },
    /// The pause has ended by itself. Containers may run on until the client stops the pod.
    Lost,
    /// StopPodSandbox has begun or the keeper has ended; what is left is being released or has been.
    NotReady {
        /// Everything the pod held is released: cgroup, addresses, keeper.
        released: bool,
    },
}

impl PodState {
    /// The pause runs.
    #[must_use]
    pub fn ready(&self, pause_pid: i32) -> Self {
        match self {
            Self::Creating | Self::Ready { .. } => Self::Ready { pause_pid },
            // A pod that has been stopped never comes back.
            Self::Lost | Self::NotReady { .. } => self.clone(),
        }
    }

    /// The pause has ended.
    #[must_use]
    pub fn pause_ended(&self) -> Self {
        match self {
            Self::Ready { .. } => Self::Lost,
            Self::Creating | Self::Lost | Self::NotReady { .. } => self.clone(),
        }
    }

    /// The pod is on its way down.
    #[must_use]
    pub fn stopping(&self) -> Self {
        match self {
            Self::NotReady { .. } => self.clone(),
            Self::Creating | Self::Ready { .. } | Self::Lost => Self::NotReady { released: false },
        }
    }

    /// The pod holds nothing any more.
    #[must_use]
    pub fn released(&self) -> Self {
        Self::NotReady { released: true }
    }
}

/// Where a pod's hostname, hosts and resolv.conf are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FilesPlace {
    /// In its volatile folder: of a pod that an older daemon has run.
    #[default]
    Folder,
    /// In a small filesystem of its pause.
    Pause,
}

/// What is on disk of a pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PodRecord {
    /// Its id.
    pub id: PodId,
    /// As the client gave it.
    pub config: PodSandboxConfig,
    /// As the client gave it; empty is the default.
    pub runtime_handler: String,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// The boot in which it was made: nothing of it runs in another (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// The pause's cgroup, as a path in every hierarchy.
    pub cgroup: String,
    /// Its SELinux labels, on a host that has them.
    #[serde(default)]
    pub selinux: Option<Labels>,
    /// The log folder by a path without symbolic links, as it was when the pod was run; none of a pod without one, and
    /// of one that a daemon has run which did not note it.
    #[serde(default)]
    pub log_folder: Option<String>,
    /// What the client has given it as a whole since it was run.
    #[serde(default)]
    pub resources: PodResources,
    /// Where its files are.
    #[serde(default)]
    pub files: FilesPlace,
    /// Where it is.
    pub state: PodState,
}

/// The resources of a pod as a whole (CRI `UpdatePodSandboxResourcesRequest`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PodResources {
    /// Of what is not its containers.
    pub overhead: Option<LinuxContainerResources>,
    /// Of its containers together.
    pub resources: Option<LinuxContainerResources>,
}

impl PodRecord {
    /// The files of the pod, whose volatile folder this is.
    #[must_use]
    pub fn files<'a>(&self, folder: &'a Path) -> PodFiles<'a> {
        match self.files {
            FilesPlace::Folder => PodFiles::In(folder),
            FilesPlace::Pause => PodFiles::OfPause,
        }
    }
}

/// A pod in memory.
#[derive(Debug)]
pub struct Pod {
    /// Its id.
    pub id: PodId,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// What has been told of it.
    pub told: Told,
    /// How much of a core it uses.
    pub rate: Rate,
    record: Record<PodRecord>,
    changed: watch::Sender<()>,
    link: Mutex<Option<Link>>,
    /// Of a keeper that nobody follows yet.
    news: Mutex<Option<NewsReceiver>>,
    netns: Mutex<Option<OwnedFd>>,
    userns: Mutex<Option<OwnedFd>>,
    /// Containers that are being made.
    making: watch::Sender<Vec<ContainerId>>,
    /// What its keeper knows has been taken over, after a start of the daemon.
    reconciled: watch::Sender<bool>,
    /// Its keeper may have execs of a former daemon.
    former_daemon: AtomicBool,
    /// Its pause or its keeper has ended.
    lost: AtomicBool,
}

/// A container that is being made, until this is dropped.
#[derive(Debug)]
pub struct Making {
    pod: Arc<Pod>,
    container: ContainerId,
}

impl Drop for Making {
    fn drop(&mut self) {
        self.pod.making.send_modify(|making| making.retain(|id| *id != self.container));
    }
}

impl Pod {
    /// A pod whose record is kept at `file`.
    #[must_use]
    pub fn new(record: PodRecord, file: PathBuf, writer: RecordWriter) -> Self {
        Self {
            id: record.id.clone(),
            created_at: record.created_at,
            told: Told::already(Level::of_found_pod(&record.state)),
            rate: Rate::default(),
            record: Record::new(record, file, writer),
            changed: watch::Sender::new(()),
            link: Mutex::new(None),
            news: Mutex::new(None),
            netns: Mutex::new(None),
            userns: Mutex::new(None),
            making: watch::Sender::default(),
            reconciled: watch::Sender::new(true),
            former_daemon: AtomicBool::new(false),
            lost: AtomicBool::new(false),
        }
    }

    /// A former daemon has run this pod: what its keeper knows is still to be taken over.
    pub fn set_former_daemon(&self) {
        self.former_daemon.store(true, Ordering::Release);
        self.set_reconciled(false);
    }

    /// Whether the execs of a former daemon are still to be ended; true once.
    #[must_use]
    pub fn take_former_daemon(&self) -> bool {
        self.former_daemon.swap(false, Ordering::AcqRel)
    }

    /// Its pause or its keeper has ended.
    pub fn set_lost(&self) {
        self.lost.store(true, Ordering::Release);
    }

    /// Whether its pause or its keeper has ended, so that it cannot become ready.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// A container is being made in it: whoever stops the pod has to know.
    #[must_use]
    pub fn making(self: &Arc<Self>, container: ContainerId) -> Making {
        self.making.send_modify(|making| making.push(container.clone()));
        Making { pod: self.clone(), container }
    }

    /// Waits until no container is being made, but no longer than `patience`; those that still are.
    pub async fn none_making(&self, patience: Duration) -> Vec<ContainerId> {
        let mut making = self.making.subscribe();
        let none = making.wait_for(Vec::is_empty);
        drop(tokio::time::timeout(patience, none).await);
        self.making.borrow().clone()
    }

    /// What the keeper knows is still to be taken over, or has been.
    pub fn set_reconciled(&self, reconciled: bool) {
        self.reconciled.send_replace(reconciled);
    }

    /// Whether what the keeper knows has been taken over.
    #[must_use]
    pub fn is_reconciled_now(&self) -> bool {
        *self.reconciled.borrow()
    }

    /// Waits until what the keeper knows has been taken over.
    pub async fn is_reconciled(&self) {
        // The sender lives in `self`: this cannot fail while `self` is borrowed.
        drop(self.reconciled.subscribe().wait_for(|reconciled| *reconciled).await);
    }

    /// The record as it is now.
    #[must_use]
    pub fn record(&self) -> PodRecord {
        self.record.get()
    }

    /// Looks at the record without a copy.
    pub fn with<T>(&self, look: impl FnOnce(&PodRecord) -> T) -> T {
        self.record.with(look)
    }

    /// Changes what is intended: on disk first. It blocks as long as the disk does.
    ///
    /// # Errors
    /// The file cannot be written; the record stays.
    pub fn intend(&self, change: impl Fn(&mut PodRecord)) -> Result<(), FileError> {
        self.record.intend(change)?;
        self.changed.send_replace(());
        Ok(())
    }

    /// The state has changed: for everyone to see at once, on disk as soon as that takes it.
    pub fn happened(&self, transition: impl FnOnce(&PodState) -> PodState) {
        self.record.happened(|record| record.state = transition(&record.state));
        self.changed.send_replace(());
    }

    /// The pod is being removed: its record is not written any more.
    pub fn give_up_record(&self) {
        self.record.give_up();
    }

    /// The state as it is now.
    #[must_use]
    pub fn state(&self) -> PodState {
        self.with(|record| record.state.clone())
    }

    /// Waits until the pod is on its way down.
    pub async fn stopping(&self) {
        let mut changes = self.changed.subscribe();
        while !matches!(self.state(), PodState::Lost | PodState::NotReady { .. }) {
            // The sender lives in `self`: this cannot fail while `self` is borrowed.
            drop(changes.changed().await);
        }
    }

    /// What the client calls it.
    #[must_use]
    pub fn name(&self) -> PodName {
        self.with(|record| PodName::from(&record.config.metadata.clone().unwrap_or_default()))
    }

    /// The connection to the keeper, while there is one.
    #[must_use]
    pub fn link(&self) -> Option<Link> {
        lock(&self.link).clone()
    }

    /// Sets or drops the connection to the keeper.
    pub fn set_link(&self, link: Option<Link>) {
        *lock(&self.link) = link;
    }

    /// Keeps the news of its keeper until somebody follows it.
    pub fn put_news(&self, news: NewsReceiver) {
        *lock(&self.news) = Some(news);
    }

    /// The news of its keeper, where nobody follows it yet.
    pub fn take_news(&self) -> Option<NewsReceiver> {
        lock(&self.news).take()
    }

    /// The pod's network namespace, while the pause runs.
    #[must_use]
    pub fn netns(&self) -> Option<OwnedFd> {
        lock(&self.netns).as_ref().and_then(|fd| fd.as_fd().try_clone_to_owned().ok())
    }

    /// Sets or drops the network namespace: as long as it is held here it lives.
    pub fn set_netns(&self, netns: Option<OwnedFd>) {
        *lock(&self.netns) = netns;
    }

    /// The pod's user namespace, if it has one, while the pause runs.
    #[must_use]
    pub fn userns(&self) -> Option<OwnedFd> {
        lock(&self.userns).as_ref().and_then(|fd| fd.as_fd().try_clone_to_owned().ok())
    }

    /// Sets or drops the user namespace.
    pub fn set_userns(&self, userns: Option<OwnedFd>) {
        *lock(&self.userns) = userns;
    }

    /// The namespace modes asked for; all `POD` where nothing was said (CRI: the zero value).
    #[must_use]
    pub fn namespaces(&self) -> NamespaceOption {
        self.with(|record| namespaces(&record.config))
    }

    /// The pod lives in the host's network.
    #[must_use]
    pub fn host_network(&self) -> bool {
        self.namespaces().network() == NamespaceMode::Node
    }
}

/// The namespace modes of a pod's config.
#[must_use]
pub fn namespaces(config: &PodSandboxConfig) -> NamespaceOption {
    config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|context| context.namespace_options.clone())
        .unwrap_or_default()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_pod_never_comes_back() {
        let stopped = PodState::Ready { pause_pid: 7 }.stopping();
        assert_eq!(stopped, PodState::NotReady { released: false });
        assert_eq!(stopped.ready(8), stopped);
        assert_eq!(stopped.released().stopping(), PodState::NotReady { released: true });
        let lost = PodState::Ready { pause_pid: 7 }.pause_ended();
        assert_eq!((lost.ready(8), lost.stopping()), (PodState::Lost, stopped.clone()));
        assert_eq!(stopped.pause_ended(), stopped, "it is being stopped, and goes on to be");
    }
}
