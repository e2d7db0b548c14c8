//! GetContainerEvents: what happens to containers and sandboxes, told to everyone who asks.
//!
//! * Of each object every event comes once and in order, however the news of its changes cross: what has been told of it
//!   is kept with it ([`Told`]).
//! * An event is never older than what Status answers, and its statuses are those of the moment in which it is told. A
//!   client that subscribes first and lists then misses nothing.
//! * What this daemon found to have ended when it started is told to every subscriber, as long as it is there.
//! * A subscriber that does not read is ended with an error when its queue is full ([`subscribers`]): it never misses one
//!   unknowingly.
//!
//! A sandbox is told of as a container with its own id, as with containerd.

mod subscribers;
mod told;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_proto::v1::{ContainerEventResponse, ContainerEventType};
use futures_util::Stream;
use tonic::Status;

use subscribers::Subscribers;
pub use told::{Level, Told};

use crate::container::status::container_status;
use crate::daemon::Daemon;
use crate::pod::status::pod_status;
use crate::store::{Container, Pod};

/// Who listens, and what has been told. Its lock is held while an event is made from memory and put into the queues: so
/// their order is the same for everyone.
#[derive(Debug, Default)]
pub struct Events {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    subscribers: Subscribers<ContainerEventResponse>,
    /// The time of the last event: none has an earlier one than that before it, also when the clock is set back.
    last: i64,
    /// The daemon has started: nothing is noted for later any more.
    started: bool,
    /// What was told while nobody could listen yet.
    missed: Vec<Missed>,
}

#[derive(Debug)]
struct Missed {
    /// The pod's id.
    pod: String,
    /// The container's, or the pod's own.
    id: String,
    kind: ContainerEventType,
}

impl Events {
    /// Tells how far a container has come, by its state.
    pub fn container(&self, daemon: &Daemon, container: &Container) {
        let mut inner = self.lock();
        for kind in container.told.up_to(Level::of_container(&container.state())) {
            inner.tell_container(daemon, container, kind);
        }
    }

    /// Tells that a container is gone. To be called when Status does not know it any more.
    pub fn container_deleted(&self, daemon: &Daemon, container: &Container) {
        let mut inner = self.lock();
        let last = container.told.up_to(Level::of_container(&container.state()));
        for kind in last.into_iter().chain(container.told.up_to(Level::Deleted)) {
            inner.tell_container(daemon, container, kind);
        }
    }

    /// Tells how far a pod has come.
    pub fn pod(&self, daemon: &Daemon, pod: &Pod, level: Level) {
        let mut inner = self.lock();
        for kind in pod.told.up_to(level) {
            inner.tell(daemon, Some(pod), pod.id.as_str(), kind);
        }
    }

    /// The daemon has taken over what a former one has left: an end from now on is told to those who listen.
    pub fn started(&self) {
        self.lock().started = true;
    }

    /// What happens from now on, after what this daemon found when it started.
    pub fn subscribe(
        &self,
        daemon: &Daemon,
    ) -> impl Stream<Item = Result<ContainerEventResponse, Status>> + Send + use<> {
        let mut inner = self.lock();
        let there = |missed: &Missed| match missed.id == missed.pod {
            true => daemon.store.pod(&missed.id).is_ok(),
            false => daemon.store.container(&missed.id).is_ok(),
        };
        inner.missed.retain(there);
        let missed = std::mem::take(&mut inner.missed);
        let mut first = Vec::new();
        for Missed { pod, id, kind } in &missed {
            let pod = daemon.store.pod(pod).ok();
            first.push(Arc::new(inner.event(daemon, pod.as_deref(), id, *kind)));
        }
        inner.missed = missed;
        inner.subscribers.add(&first)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn tell_container(&mut self, daemon: &Daemon, container: &Container, kind: ContainerEventType) {
        let pod = daemon.store.pod(container.pod.as_str()).ok();
        if !self.started && kind == ContainerEventType::ContainerStoppedEvent {
            let (pod, id) = (container.pod.as_str().to_owned(), container.id.as_str().to_owned());
            self.missed.push(Missed { pod, id, kind });
        }
        self.tell(daemon, pod.as_deref(), container.id.as_str(), kind);
    }

    fn tell(&mut self, daemon: &Daemon, pod: Option<&Pod>, id: &str, kind: ContainerEventType) {
        let is_end = kind == ContainerEventType::ContainerStoppedEvent;
        if let Some(pod) = pod.filter(|pod| is_end && !self.started && pod.id.as_str() == id) {
            self.missed.push(Missed { pod: pod.id.as_str().to_owned(), id: id.to_owned(), kind });
        }
        if self.subscribers.is_empty() {
            return;
        }
        let event = Arc::new(self.event(daemon, pod, id, kind));
        self.subscribers.tell(&event);
    }

    fn event(
        &mut self,
        daemon: &Daemon,
        pod: Option<&Pod>,
        id: &str,
        kind: ContainerEventType,
    ) -> ContainerEventResponse {
        self.last = crate::clock::now().max(self.last + 1);
        let containers = pod.map(|pod| daemon.store.containers_of(&pod.id)).unwrap_or_default();
        ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind.into(),
            created_at: self.last,
            pod_sandbox_status: pod.map(|pod| pod_status(daemon, pod)),
            containers_statuses: containers.iter().map(|container| container_status(container)).collect(),
        }
    }
}
