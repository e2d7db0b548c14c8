//! The daemon's state: every pod and container, in memory for List and Status, and on disk as one folder with
//! one JSON file each, so that a restarted daemon can read it again.
//!
//! * [`mod@file`]: a JSON file that is replaced atomically
//! * [`record`]: a value in memory and on disk; [`writer`]: the thread that writes changes in the background
//! * [`spec`]: the OCI spec of a container; [`rate`]: the CPU usage of an object
//! * [`name`]: the names that clients give
//! * [`pod`], [`container`]: the records, their states and the only functions that change them; [`decide`]:
//!   decisions that depend on the states; [`event_cursor`]: the events of an object that were sent; `model`: an exhaustive model check of both
//! * this file: the indexes by id, by prefix of an id and by name
//! * [`mod@file`]: a JSON file that is replaced atomically

pub mod container;
pub mod decide;
mod event_cursor;
pub mod file;
#[cfg(test)]
mod model;
pub mod name;
pub mod pod;
pub mod rate;
pub mod record;
pub mod spec;
pub mod writer;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

pub use container::{Container, ContainerRecord, ContainerState, Exit, ExitReason};
pub use decide::{KeeperReport, PodRecovery};
pub use event_cursor::{EventCursor, Level};
pub use name::{ContainerName, PodName};
pub use pod::{Pod, PodRecord, PodState};
pub use writer::RecordWriter;

use crate::error::CriError;
use crate::ids::{ContainerId, PodId};

/// The folders of one daemon.
#[derive(Clone, Debug)]
pub struct Folders {
    root: PathBuf,
    state: PathBuf,
}

impl Folders {
    /// `root` is persistent; `state` is lost in a reboot.
    #[must_use]
    pub fn new(root: &Path, state: &Path) -> Self {
        Self { root: root.to_owned(), state: state.to_owned() }
    }

    /// The folder of all pods' persistent folders.
    #[must_use]
    pub fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// The folder of all containers' persistent folders.
    #[must_use]
    pub fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    /// The folder of all pods' volatile folders.
    #[must_use]
    pub fn pods_state(&self) -> PathBuf {
        self.state.join("pods")
    }

    /// The folder of the records of log folders ([`crate::log_folders`]).
    #[must_use]
    pub fn log_folders(&self) -> PathBuf {
        self.root.join("log-folders")
    }

    /// A pod's persistent folder, which contains its record.
    #[must_use]
    pub fn pod(&self, id: &PodId) -> PathBuf {
        self.pods().join(id.as_str())
    }

    /// A pod's volatile folder, which contains the keeper's socket and log.
    #[must_use]
    pub fn pod_state(&self, id: &PodId) -> PathBuf {
        self.pods_state().join(id.as_str())
    }

    /// A container's persistent folder, which contains its record, its OCI spec and its exit record.
    #[must_use]
    pub fn container(&self, id: &ContainerId) -> PathBuf {
        self.containers().join(id.as_str())
    }
}

#[derive(Debug, Default)]
struct Index {
    pods: HashMap<PodId, Arc<Pod>>,
    pod_names: HashMap<PodName, PodId>,
    containers: HashMap<ContainerId, Arc<Container>>,
    container_names: HashMap<(PodId, ContainerName), ContainerId>,
    /// Pods that are being created. They have a record on disk and are in no other list.
    creating: HashSet<PodId>,
}

/// The indexes of all pods and containers. Their lock is never held across a call that can block.
#[derive(Debug, Default)]
pub struct Store {
    index: RwLock<Index>,
}

/// Marks a pod as being created until it is dropped.
#[derive(Debug)]
pub struct PodCreation {
    store: Arc<Store>,
    pod: PodId,
}

impl Drop for PodCreation {
    fn drop(&mut self) {
        self.store.write().creating.remove(&self.pod);
    }
}

impl Store {
    fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks a pod as being created until the guard is dropped, after it was added or its creation was undone.
    #[must_use]
    pub fn begin_creating(self: &Arc<Self>, pod: PodId) -> PodCreation {
        self.write().creating.insert(pod.clone());
        PodCreation { store: self.clone(), pod }
    }

    /// Returns the pods that are being created.
    #[must_use]
    pub fn creating_pods(&self) -> Vec<PodId> {
        self.read().creating.iter().cloned().collect()
    }

    /// Adds a pod and its name.
    pub fn insert_pod(&self, pod: Arc<Pod>) {
        let mut index = self.write();
        index.pod_names.insert(pod.name(), pod.id.clone());
        index.pods.insert(pod.id.clone(), pod);
    }

    /// Adds a container and its name.
    pub fn insert_container(&self, container: Arc<Container>) {
        let mut index = self.write();
        let name = (container.pod.clone(), container.name());
        index.container_names.insert(name, container.id.clone());
        index.containers.insert(container.id.clone(), container);
    }

    /// Removes a pod and its name.
    pub fn forget_pod(&self, pod: &Pod) {
        let mut index = self.write();
        index.pods.remove(&pod.id);
        let name = pod.name();
        if index.pod_names.get(&name) == Some(&pod.id) {
            index.pod_names.remove(&name);
        }
    }

    /// Removes a container and its name.
    pub fn forget_container(&self, container: &Container) {
        let mut index = self.write();
        index.containers.remove(&container.id);
        let name = (container.pod.clone(), container.name());
        if index.container_names.get(&name) == Some(&container.id) {
            index.container_names.remove(&name);
        }
    }

    /// Returns the pod with this name.
    #[must_use]
    pub fn pod_by_name(&self, name: &PodName) -> Option<PodId> {
        self.read().pod_names.get(name).cloned()
    }

    /// Returns the container with this name in a pod.
    #[must_use]
    pub fn container_by_name(&self, pod: &PodId, name: &ContainerName) -> Option<ContainerId> {
        self.read().container_names.get(&(pod.clone(), name.clone())).cloned()
    }

    /// Finds a pod by its id or by a unique prefix of it.
    ///
    /// # Errors
    /// `InvalidArgument` if the id is empty or the prefix is ambiguous, `NotFound` if nothing matches.
    pub fn pod(&self, id: &str) -> Result<Arc<Pod>, CriError> {
        find(&self.read().pods, id, PodId::as_str, "pod_sandbox_id", "pod sandbox")
    }

    /// Finds a container by its id or by a unique prefix of it.
    ///
    /// # Errors
    /// As [`Store::pod`].
    pub fn container(&self, id: &str) -> Result<Arc<Container>, CriError> {
        find(&self.read().containers, id, ContainerId::as_str, "container_id", "container")
    }

    /// Returns all pods, newest first, as crictl and containerd list them.
    #[must_use]
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        let mut pods: Vec<_> = self.read().pods.values().cloned().collect();
        pods.sort_by_key(|pod| std::cmp::Reverse(pod.created_at));
        pods
    }

    /// Returns all containers, newest first.
    #[must_use]
    pub fn containers(&self) -> Vec<Arc<Container>> {
        let mut containers: Vec<_> = self.read().containers.values().cloned().collect();
        containers.sort_by_key(|container| std::cmp::Reverse(container.created_at));
        containers
    }

    /// Returns pods with their containers, sorted by their creation. Each container is looked at once, however many pods there
    /// are.
    pub fn with_containers(&self, pods: Vec<Arc<Pod>>) -> Vec<(Arc<Pod>, Vec<Arc<Container>>)> {
        let mut by_pod: HashMap<PodId, Vec<Arc<Container>>> = HashMap::new();
        for container in self.containers() {
            by_pod.entry(container.pod.clone()).or_default().push(container);
        }
        let mut containers = |pod: &Pod| {
            let mut containers = by_pod.remove(&pod.id).unwrap_or_default();
            containers.sort_by_key(|container| container.created_at);
            containers
        };
        pods.into_iter().map(|pod| (pod.clone(), containers(&pod))).collect()
    }

    /// Returns the containers of a pod, oldest first.
    #[must_use]
    pub fn containers_of(&self, pod: &PodId) -> Vec<Arc<Container>> {
        let mut containers: Vec<_> =
            self.read().containers.values().filter(|c| c.pod == *pod).cloned().collect();
        containers.sort_by_key(|container| container.created_at);
        containers
    }
}

fn find<I: Eq + std::hash::Hash + TryFrom<String>, T>(
    objects: &HashMap<I, Arc<T>>,
    prefix: &str,
    text: impl Fn(&I) -> &str,
    field: &'static str,
    kind: &'static str,
) -> Result<Arc<T>, CriError> {
    if prefix.is_empty() {
        return Err(CriError::invalid(field, "is empty"));
    }
    // Nearly every client sends a whole id: look it up without scanning all others.
    if let Some(found) = I::try_from(prefix.to_owned()).ok().and_then(|id| objects.get(&id)) {
        return Ok(found.clone());
    }
    let mut matches = objects.iter().filter(|(id, _)| text(id).starts_with(prefix));
    match (matches.next(), matches.next()) {
        (Some((_, found)), None) => Ok(found.clone()),
        (Some(_), Some(_)) => Err(CriError::invalid(field, format!("{prefix:?} is a prefix of several ids"))),
        (None, _) => Err(CriError::not_found(kind, prefix)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, number: u8) -> Arc<Pod> {
        let metadata = berth_proto::v1::PodSandboxMetadata { name: name.to_owned(), ..Default::default() };
        let record = PodRecord {
            id: PodId::try_from(format!("{number:02x}").repeat(32)).unwrap(),
            config: berth_proto::v1::PodSandboxConfig { metadata: Some(metadata), ..Default::default() },
            runtime_handler: String::new(),
            created_at: 1,
            boot_id: String::new(),
            cgroup: String::new(),
            selinux: None,
            log_folder: None,
            resources: pod::PodResources::default(),
            files: pod::FilesLocation::default(),
            restores: false,
            state: PodState::Creating.ready(7),
        };
        Arc::new(Pod::new(record, PathBuf::from("/nonexistent/pod.json"), RecordWriter::start().unwrap()))
    }

    #[test]
    fn removing_a_pod_frees_its_rate() {
        let store = Store::default();
        for number in 0..100 {
            let pod = pod("pod", number);
            store.insert_pod(pod.clone());
            assert_eq!(
                pod.rate.nano_cores(1_000),
                None,
                "a new pod does not inherit the rate of an earlier one with its name"
            );
            store.forget_pod(&pod);
            let weak = Arc::downgrade(&pod);
            drop(pod);
            assert!(weak.upgrade().is_none(), "the store does not hold a removed pod");
        }
        assert!(store.pods().is_empty() && store.read().pod_names.is_empty());
    }
}
