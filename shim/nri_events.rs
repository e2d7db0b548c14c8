//! The events of pods and containers for NRI plugins: makes the messages from the records, and calls the plugins.
//!
//! Without plugins, each function only reads one number.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use berth_cni::Network;
use berth_proto::nri::{
    CdiDevice, Container as NriContainer, ContainerState as NriState, Image, LinuxNamespace, LinuxPodSandbox,
    LinuxResources as NriResources, PodSandbox, SecurityProfile, UpdatePodSandboxRequest,
    security_profile::ProfileType,
};
use berth_proto::v1::LinuxContainerResources;
use oci_spec::runtime::Spec;
use tokio::task::AbortHandle;
use tonic::Code;

use crate::blocking::blocking;
use crate::error::{CriError, subsystem};
use crate::nri::adaptation::{Adaptation, CreationChanges, NriCreation, NriError};
use crate::nri::adjust::{resources, view};
use crate::nri::events::Notice;
use crate::nri::merge::MergedUpdates;
use crate::oci;
use crate::oci::seccomp::SeccompChoice;
use crate::store::{Container, ContainerRecord, ContainerState, Pod, PodRecord, PodState, Store};

/// Creates an error about NRI plugins.
impl From<NriError> for CriError {
    fn from(error: NriError) -> Self {
        let code = match error {
            NriError::Overtaken => Code::Unavailable,
            _ => Code::FailedPrecondition,
        };
        subsystem(code, error)
    }
}

/// The plugins, and the pods and containers of which they are notified.
#[derive(Debug)]
pub struct NriEvents {
    plugins: Arc<Adaptation>,
    store: Arc<Store>,
    network: Network,
    /// Tasks that wait for the ends of containers.
    watchers: Mutex<HashMap<String, AbortHandle>>,
}

/// A container that is being removed, as plugins see it.
#[derive(Debug)]
pub struct NriRemoval {
    id: String,
    messages: Option<(PodSandbox, NriContainer)>,
}

impl NriEvents {
    /// Starts without plugins.
    #[must_use]
    pub fn new(plugins: Arc<Adaptation>, store: Arc<Store>, network: Network) -> Arc<Self> {
        Arc::new(Self { plugins, store, network, watchers: Mutex::default() })
    }

    /// Returns the plugins.
    #[must_use]
    pub fn plugins(&self) -> &Arc<Adaptation> {
        &self.plugins
    }

    fn watchers(&self) -> MutexGuard<'_, HashMap<String, AbortHandle>> {
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notifies the plugins of a new pod, before clients see it.
    ///
    /// # Errors
    /// A plugin rejects the pod. Those before it were notified: call [`NriEvents::undo_pod`].
    pub async fn run_pod(&self, creation: &NriCreation, pod: &Pod) -> Result<(), CriError> {
        if !creation.is_announced() {
            return Ok(());
        }
        Ok(self.plugins.run_pod(&self.pod_message(pod)).await?)
    }

    /// Notifies the plugins that the creation of a pod has failed.
    pub async fn undo_pod(&self, pod: &Pod) {
        self.pod(Notice::StopPod, pod).await;
        self.pod(Notice::RemovePod, pod).await;
    }

    /// Notifies the plugins of an event of a pod. An error is only logged: the event has taken place.
    pub async fn pod(&self, notice: Notice, pod: &Pod) {
        if !self.plugins.is_active() {
            return;
        }
        if let Err(error) = self.plugins.notify(notice, &self.pod_message(pod), None).await {
            tracing::warn!(pod = pod.id.as_str(), ?notice, %error, "an NRI plugin rejected an event");
        }
    }

    /// Notifies the plugins that the resources of a pod will be updated.
    ///
    /// # Errors
    /// A plugin rejects the update.
    pub async fn update_pod(
        &self,
        pod: &Pod,
        overhead: Option<&LinuxContainerResources>,
        requested: Option<&LinuxContainerResources>,
    ) -> Result<(), CriError> {
        if !self.plugins.is_active() {
            return Ok(());
        }
        let request = UpdatePodSandboxRequest {
            pod: Some(self.pod_message(pod)),
            overhead_linux_resources: overhead.map(resources_of),
            linux_resources: requested.map(resources_of),
        };
        Ok(self.plugins.update_pod(&request).await?)
    }

    /// Collects the changes of the plugins to a container that is being created.
    ///
    /// # Errors
    /// A plugin or a validator rejects the container, or two plugins conflict. Call [`NriEvents::undo_container`] then.
    pub async fn create(
        &self,
        pod: &Pod,
        container: &Container,
        spec: &Spec,
    ) -> Result<CreationChanges, CriError> {
        let message = container_message(container, spec);
        Ok(self.plugins.create_container(&self.pod_message(pod), message).await?)
    }

    /// Notifies the plugins that the creation of a container has failed.
    pub async fn undo_container(&self, container: &Arc<Container>) {
        self.stopped(container).await;
        let removal = self.prepare_removal(container).await;
        self.removed(removal).await;
    }

    /// Notifies the plugins of an event of a container.
    ///
    /// # Errors
    /// A plugin rejects the event.
    pub async fn container(&self, notice: Notice, container: &Arc<Container>) -> Result<(), CriError> {
        if !self.plugins.is_active() {
            return Ok(());
        }
        let Some((pod, message)) = self.messages(container).await else { return Ok(()) };
        Ok(self.plugins.notify(notice, &pod, Some(&message)).await?)
    }

    /// Notifies the plugins of an event of a container that has taken place. An error is only logged.
    pub async fn after(&self, notice: Notice, container: &Arc<Container>) {
        if let Err(error) = self.container(notice, container).await {
            tracing::warn!(container = container.id.as_str(), ?notice, %error, "an NRI plugin rejected an event");
        }
    }

    /// Notifies the plugins of the end of a container, once. When it returns, they were notified.
    pub async fn stopped(&self, container: &Arc<Container>) {
        if !self.plugins.is_active() {
            return;
        }
        let Some((pod, message)) = self.messages(container).await else { return };
        match self.plugins.stop_container(&pod, &message).await {
            Ok(changes) => self.plugins.apply_later(changes),
            Err(error) => {
                tracing::warn!(container = container.id.as_str(), %error, "an NRI plugin rejected an event");
            }
        }
    }

    /// Reads what [`NriEvents::removed`] sends. Call it before the container's files are removed.
    pub async fn prepare_removal(&self, container: &Arc<Container>) -> NriRemoval {
        let id = container.id.as_str().to_owned();
        let messages = if self.plugins.is_active() { self.messages(container).await } else { None };
        NriRemoval { id, messages }
    }

    /// Notifies the plugins that a container was removed. It is not in the store any longer.
    pub async fn removed(&self, removal: NriRemoval) {
        if let Some(watcher) = self.watchers().remove(&removal.id) {
            watcher.abort();
        }
        let Some((pod, container)) = removal.messages else { return };
        if let Err(error) = self.plugins.notify(Notice::Remove, &pod, Some(&container)).await {
            tracing::warn!(container = removal.id, %error, "an NRI plugin rejected an event");
        }
    }

    /// Notifies the plugins of the end of a container when it ends.
    pub fn watch(self: &Arc<Self>, container: &Arc<Container>) {
        if !self.plugins.is_active() {
            return;
        }
        let (events, watched) = (Arc::downgrade(self), container.clone());
        let mut watchers = self.watchers();
        watchers.entry(container.id.as_str().to_owned()).or_insert_with(|| {
            let task = async move {
                watched.ended().await;
                if let Some(events) = Weak::upgrade(&events) {
                    events.stopped(&watched).await;
                }
            };
            tokio::spawn(task).abort_handle()
        });
    }

    /// Collects the changes of the plugins to an update of a container. Returns none without plugins.
    ///
    /// # Errors
    /// A plugin rejects the update, or two plugins conflict.
    pub async fn update(
        &self,
        container: &Arc<Container>,
        requested: &LinuxContainerResources,
    ) -> Result<Option<(NriResources, MergedUpdates)>, CriError> {
        if !self.plugins.is_active() {
            return Ok(None);
        }
        let Some((pod, message)) = self.messages(container).await else { return Ok(None) };
        Ok(Some(self.plugins.update_container(&pod, &message, resources_of(requested)).await?))
    }

    /// Returns all running pods and containers, and watches the containers.
    pub async fn snapshot(self: &Arc<Self>) -> (Vec<PodSandbox>, Vec<NriContainer>) {
        let pods = self.store.pods();
        let ready = pods.iter().filter(|pod| matches!(pod.state(), PodState::Ready { .. }));
        let pods = ready.map(|pod| self.pod_message(pod)).collect();
        let mut containers = Vec::new();
        for container in self.store.containers() {
            if container.state().pid().is_some()
                && let Some((_, message)) = self.messages(&container).await
            {
                self.watch(&container);
                containers.push(message);
            }
        }
        (pods, containers)
    }

    /// Returns the messages of a container and of its pod.
    async fn messages(&self, container: &Arc<Container>) -> Option<(PodSandbox, NriContainer)> {
        let pod = self.store.pod(container.pod.as_str()).ok()?;
        let read = container.clone();
        let spec = blocking(move || read.spec.whole()).await;
        // A container that is being removed may have no spec.
        let spec = spec.unwrap_or_default();
        Some((self.pod_message(&pod), container_message(container, &spec)))
    }

    fn pod_message(&self, pod: &Pod) -> PodSandbox {
        let attachment = self.network.attachment(pod.id.as_str());
        let ips = attachment.into_iter().flat_map(|attachment| attachment.ips).map(|ip| ip.to_string());
        PodSandbox { ips: ips.collect(), ..pod.with(pod_of) }
    }
}

fn pod_of(record: &PodRecord) -> PodSandbox {
    let config = &record.config;
    let metadata = config.metadata.clone().unwrap_or_default();
    let linux = config.linux.clone().unwrap_or_default();
    let pid = record.state.pause();
    let namespaces = pid.into_iter().flat_map(|pid| {
        [("ipc", "ipc"), ("uts", "uts"), ("network", "net")].map(|(kind, file)| LinuxNamespace {
            r#type: kind.to_owned(),
            path: format!("/proc/{pid}/ns/{file}"),
        })
    });
    let of = |updated: &Option<LinuxContainerResources>, first: &Option<LinuxContainerResources>| {
        updated.as_ref().or(first.as_ref()).map(resources_of)
    };
    PodSandbox {
        id: record.id.as_str().to_owned(),
        name: metadata.name,
        uid: metadata.uid,
        namespace: metadata.namespace,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        runtime_handler: record.runtime_handler.clone(),
        linux: Some(LinuxPodSandbox {
            pod_overhead: of(&record.resources.overhead, &linux.overhead),
            pod_resources: of(&record.resources.resources, &linux.resources),
            cgroup_parent: linux.cgroup_parent.clone(),
            cgroups_path: record.cgroup.clone(),
            namespaces: namespaces.collect(),
            resources: None,
        }),
        pid: pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or_default(),
        ips: Vec::new(),
    }
}

/// Returns limits as plugins see them.
fn resources_of(requested: &LinuxContainerResources) -> NriResources {
    let mut limits = oci::resources::limits(requested, true);
    // The swap limit that an omitted one becomes is not a request.
    if let Some(memory) = limits.memory().filter(|_| requested.memory_swap_limit_in_bytes == 0) {
        let mut memory = memory;
        memory.set_swap(None);
        limits.set_memory(Some(memory));
    }
    resources::view(&limits)
}

fn container_message(container: &Container, spec: &Spec) -> NriContainer {
    container.with(|record| message_of(record, view::container_of(spec)))
}

fn message_of(record: &ContainerRecord, from_spec: NriContainer) -> NriContainer {
    let config = &record.config;
    let mut annotations = config.annotations.clone();
    annotations.extend(from_spec.annotations);
    let mut linux = from_spec.linux.unwrap_or_default();
    linux.seccomp_profile = Some(seccomp_profile(record));
    let image = Image {
        name: config.image.as_ref().map(|image| image.image.clone()).unwrap_or_default(),
        digest: record.image_ref.rsplit_once('@').map(|(_, digest)| digest.to_owned()).unwrap_or_default(),
        config_digest: record.image_id.clone(),
    };
    let mut message = NriContainer {
        id: record.id.as_str().to_owned(),
        pod_sandbox_id: record.pod.as_str().to_owned(),
        name: config.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default(),
        state: state_of(&record.state).into(),
        labels: config.labels.clone(),
        annotations,
        linux: Some(linux),
        pid: record.state.pid().and_then(|pid| u32::try_from(pid).ok()).unwrap_or_default(),
        created_at: record.created_at,
        cdi_devices: config.cdi_devices.iter().map(|d| CdiDevice { name: d.name.clone() }).collect(),
        image: Some(image),
        ..from_spec
    };
    match &record.state {
        ContainerState::Creating | ContainerState::Created { .. } => {}
        ContainerState::Running { started_at, .. } => message.started_at = *started_at,
        ContainerState::Exited(exit) => {
            message.started_at = exit.started_at;
            message.finished_at = exit.finished_at;
            message.exit_code = exit.code;
            exit.reason.as_str().clone_into(&mut message.status_reason);
            message.status_message.clone_from(&exit.message);
        }
    }
    message
}

fn state_of(state: &ContainerState) -> NriState {
    match state {
        ContainerState::Creating | ContainerState::Created { .. } => NriState::ContainerCreated,
        ContainerState::Running { .. } => NriState::ContainerRunning,
        ContainerState::Exited(_) => NriState::ContainerStopped,
    }
}

fn seccomp_profile(record: &ContainerRecord) -> SecurityProfile {
    let choice = oci::seccomp::container_choice(&oci::security(&record.config));
    let (profile_type, localhost_ref) = match choice {
        Ok(SeccompChoice::RuntimeDefault) => (ProfileType::RuntimeDefault, String::new()),
        Ok(SeccompChoice::Localhost(path)) => (ProfileType::Localhost, path.display().to_string()),
        Ok(SeccompChoice::Unconfined) | Err(_) => (ProfileType::Unconfined, String::new()),
    };
    SecurityProfile { profile_type: profile_type.into(), localhost_ref }
}
