//! GetContainerEvents: sends the life cycle events of containers and pods to every subscriber. `berth events` watches
//! the events of the node ([`node`]): these, and image pulls, failures and OOM kills. The last of them are kept for clients
//! that connect later ([`recent`]).
//!
//! * Each event of an object is sent once and in order, even when reports of its changes arrive out of order.
//!   The object stores the last level that was reported ([`crate::store::EventCursor`]).
//! * An event is never older than the answer of a Status call. Its statuses are read when the event is
//!   created. A client that subscribes first and lists afterwards misses nothing.
//! * If a container or pod ended while no daemon ran, every subscriber receives its stop event, as long as
//!   the object exists.
//! * If a subscriber does not read and its queue is full, its stream ends with an error ([`subscribers`]). A
//!   subscriber never misses an event without an error.
//!
//! Events of a pod sandbox carry the id of the sandbox as the container id, as in containerd.

mod node;
mod recent;
mod subscribers;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_cni::Network;
use berth_proto::admin::NodeEvent;
use berth_proto::v1::{ContainerEventResponse, ContainerEventType};
use futures_util::{Stream, StreamExt, stream};
use tonic::Status;

use crate::store::{Container, Level, Pod, Store};
use crate::views::{container_status, pod_status};
use recent::Recent;
use subscribers::Subscribers;

/// The subscribers, and the events that were reported before anyone could subscribe. The lock is held while
/// an event is created from memory and queued, so all subscribers see the same order.
#[derive(Debug)]
pub struct Events {
    inner: Mutex<EventState>,
}

#[derive(Debug)]
struct EventState {
    store: Arc<Store>,
    network: Network,
    subscribers: Subscribers<ContainerEventResponse>,
    watchers: Subscribers<NodeEvent>,
    recent: Recent,
    /// The time of the last event. Times strictly increase, even when the clock is set back.
    last: i64,
    /// Recovery is complete: later stop events are not stored in `missed`.
    recovered: bool,
    /// Stop events that were found during recovery, before clients could subscribe.
    missed: Vec<Missed>,
}

#[derive(Debug)]
struct Missed {
    /// Id of the pod.
    pod: String,
    /// Id of the container, or of the pod for an event of the pod.
    id: String,
    kind: ContainerEventType,
}

impl Events {
    /// Events whose statuses are made from these pods, containers and addresses.
    #[must_use]
    pub fn new(store: Arc<Store>, network: Network) -> Self {
        let subscribers = Subscribers::default();
        let inner = EventState {
            store,
            network,
            subscribers,
            watchers: Subscribers::default(),
            recent: Recent::default(),
            last: 0,
            recovered: false,
            missed: Vec::new(),
        };
        Self { inner: Mutex::new(inner) }
    }

    /// Publishes the events that the container's state implies and that were not sent yet.
    pub fn container(&self, container: &Container) {
        let mut inner = self.lock();
        for kind in container.event_cursor.advance_to(container.state().event_level()) {
            inner.publish_container(container, kind);
        }
    }

    /// Publishes the deletion of a container. The caller must have removed the container from the store, so
    /// that Status does not find it.
    pub fn container_deleted(&self, container: &Container) {
        let mut inner = self.lock();
        let last = container.event_cursor.advance_to(container.state().event_level());
        for kind in last.into_iter().chain(container.event_cursor.advance_to(Level::Deleted)) {
            inner.publish_container(container, kind);
        }
    }

    /// Publishes the events up to `level` that were not sent yet.
    pub fn pod(&self, pod: &Pod, level: Level) {
        let mut inner = self.lock();
        for kind in pod.event_cursor.advance_to(level) {
            inner.notify(node::of_pod(pod, kind));
            inner.publish(Some(pod), pod.id.as_str(), kind);
        }
    }

    /// Publishes that the kernel has killed processes of a container for lack of memory.
    pub fn oom_kills(&self, container: &Container, kills: u64) {
        let mut inner = self.lock();
        let pod = inner.store.pod(container.pod.as_str()).ok();
        inner.notify(node::of_oom_kills(pod.as_deref(), container, kills));
    }

    /// Publishes that the network of a pod has failed.
    pub fn network_failed(&self, pod: &Pod, error: &str) {
        self.lock().notify(node::of_network(pod, error));
    }

    /// Publishes an event of the node. The event gets the current time.
    pub fn report(&self, event: NodeEvent) {
        self.lock().notify(event);
    }

    /// Returns the recent events of the node from a time on, and then all future ones. Without a time only future ones.
    pub fn watch(&self, since: Option<i64>) -> impl Stream<Item = Result<NodeEvent, Status>> + Send + use<> {
        let mut inner = self.lock();
        let first = since.map(|since| inner.recent.since(since)).unwrap_or_default();
        inner.watchers.add(&first)
    }

    /// Returns the recent events of the node from a time on.
    pub fn recent(&self, since: i64) -> impl Stream<Item = Result<NodeEvent, Status>> + Send + use<> {
        let events = self.lock().recent.since(since);
        stream::iter(events).map(|event| Ok(Arc::unwrap_or_clone(event)))
    }

    /// Marks recovery as complete: from here on, stop events go only to the current subscribers.
    pub fn recovery_finished(&self) {
        self.lock().recovered = true;
    }

    /// Subscribes to all future events. The stop events that were found during recovery come first.
    pub fn subscribe(&self) -> impl Stream<Item = Result<ContainerEventResponse, Status>> + Send + use<> {
        let mut inner = self.lock();
        let store = inner.store.clone();
        let exists = |missed: &Missed| match missed.id == missed.pod {
            true => store.pod(&missed.id).is_ok(),
            false => store.container(&missed.id).is_ok(),
        };
        inner.missed.retain(exists);
        let missed = std::mem::take(&mut inner.missed);
        let mut first = Vec::new();
        for Missed { pod, id, kind } in &missed {
            let pod = store.pod(pod).ok();
            first.push(Arc::new(inner.event(pod.as_deref(), id, *kind)));
        }
        inner.missed = missed;
        inner.subscribers.add(&first)
    }

    fn lock(&self) -> MutexGuard<'_, EventState> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventState {
    fn publish_container(&mut self, container: &Container, kind: ContainerEventType) {
        let pod = self.store.pod(container.pod.as_str()).ok();
        if !self.recovered && kind == ContainerEventType::ContainerStoppedEvent {
            let (pod, id) = (container.pod.as_str().to_owned(), container.id.as_str().to_owned());
            self.missed.push(Missed { pod, id, kind });
        }
        self.notify(node::of_container(pod.as_deref(), container, kind));
        self.publish(pod.as_deref(), container.id.as_str(), kind);
    }

    fn publish(&mut self, pod: Option<&Pod>, id: &str, kind: ContainerEventType) {
        let is_stop = kind == ContainerEventType::ContainerStoppedEvent;
        if let Some(pod) = pod.filter(|pod| is_stop && !self.recovered && pod.id.as_str() == id) {
            self.missed.push(Missed { pod: pod.id.as_str().to_owned(), id: id.to_owned(), kind });
        }
        if self.subscribers.is_empty() {
            return;
        }
        let event = Arc::new(self.event(pod, id, kind));
        self.subscribers.publish(&event);
    }

    fn notify(&mut self, event: NodeEvent) {
        self.last = crate::clock::now().max(self.last + 1);
        let event = Arc::new(NodeEvent { at: self.last, ..event });
        self.watchers.publish(&event);
        self.recent.push(event);
    }

    fn event(&mut self, pod: Option<&Pod>, id: &str, kind: ContainerEventType) -> ContainerEventResponse {
        self.last = crate::clock::now().max(self.last + 1);
        let containers = pod.map(|pod| self.store.containers_of(&pod.id)).unwrap_or_default();
        ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind.into(),
            created_at: self.last,
            pod_sandbox_status: pod.map(|pod| pod_status(&self.network, pod)),
            containers_statuses: containers.iter().map(|container| container_status(container)).collect(),
        }
    }
}
