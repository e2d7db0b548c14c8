//! The pods and containers that have a record: those of a running daemon, or those on disk if no daemon runs.

use std::collections::{BTreeMap, BTreeSet};

use super::parts::DaemonParts;
use crate::ids::{ContainerId, PodId};
use crate::store::file::{self, FileError};
use crate::store::{Container, ContainerRecord, ContainerState, Folders, PodRecord, PodState};

/// A pod with a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownPod {
    /// Its state.
    pub state: PodState,
    /// Whether it was created in this boot.
    pub this_boot: bool,
}

impl KnownPod {
    /// Whether the pod can have processes, cgroups and a network. A released pod has only folders.
    #[must_use]
    pub fn holds_resources(&self) -> bool {
        self.state != PodState::NotReady { released: true }
    }
}

/// A container with a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownContainer {
    /// Its pod.
    pub pod: String,
    /// Its state.
    pub state: ContainerState,
}

/// The pods and containers with a record, by their ids.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// The pods.
    pub pods: BTreeMap<String, KnownPod>,
    /// The containers.
    pub containers: BTreeMap<String, KnownContainer>,
    /// Pods and containers that a running daemon is creating.
    pub creating: BTreeSet<String>,
    /// Whether a daemon runs: it follows the keepers of its pods.
    pub daemon_runs: bool,
}

impl Known {
    /// Returns those of a running daemon. An object that is being created moves from one list to the other, so the list of
    /// those is read first and last.
    #[must_use]
    pub fn of_daemon(daemon: &DaemonParts) -> Self {
        let mut known = Self { creating: creating(daemon), daemon_runs: true, ..Self::default() };
        for container in daemon.pods.store.containers() {
            let (pod, state) = (container.pod.clone().into(), container.state());
            known.containers.insert(container.id.clone().into(), KnownContainer { pod, state });
        }
        for pod in daemon.pods.store.pods() {
            let this_boot = pod.with(|record| record.boot_id == daemon.boot_id);
            known.pods.insert(pod.id.clone().into(), KnownPod { state: pod.state(), this_boot });
        }
        known.creating.extend(creating(daemon));
        known
    }

    /// Returns those on disk. Interrupted creations and unreadable records do not count: the next daemon removes them.
    ///
    /// # Errors
    /// The folders cannot be read, or this process lacks file descriptors.
    pub fn of_disk(folders: &Folders, boot_id: &str) -> Result<Self, FileError> {
        let mut known = Self::default();
        for id in file::names_in(&folders.pods())?.into_iter().filter_map(|name| PodId::try_from(name).ok()) {
            let record = readable::<PodRecord>(&folders.pod(&id).join("pod.json"))?;
            let Some(record) = record.filter(|record| record.state != PodState::Creating) else { continue };
            let pod = KnownPod { state: record.state, this_boot: record.boot_id == boot_id };
            known.pods.insert(id.into(), pod);
        }
        let containers = file::names_in(&folders.containers())?.into_iter();
        for id in containers.filter_map(|name| ContainerId::try_from(name).ok()) {
            let record = readable::<ContainerRecord>(&Container::record_file(&folders.container(&id)))?;
            let Some(record) = record.filter(|record| record.state != ContainerState::Creating) else {
                continue;
            };
            let container = KnownContainer { pod: record.pod.into(), state: record.state };
            known.containers.insert(id.into(), container);
        }
        Ok(known)
    }
}

fn creating(daemon: &DaemonParts) -> BTreeSet<String> {
    let mut creating: BTreeSet<String> =
        daemon.pods.store.creating_pods().into_iter().map(String::from).collect();
    for pod in daemon.pods.store.pods() {
        creating.extend(pod.creating().into_iter().map(String::from));
    }
    creating
}

fn readable<T: serde::de::DeserializeOwned>(path: &std::path::Path) -> Result<Option<T>, FileError> {
    match file::read(path) {
        Err(error) if error.is_shortage() => Err(error),
        read => Ok(read.ok()),
    }
}
