//! All plugins, in the order of their indexes. One call at a time: each plugin sees the events of a container in order, and a
//! plugin that connects gets all pods and containers between two events.
//!
//! A pod or container exists for plugins before it is in the store. Those that plugins were notified of are *announced*
//! until they are in the store; a plugin that connects gets both. If no plugin was there to be notified, the creation is
//! counted, and a plugin that connects waits for it.
//!
//! * [`connect`]: plugins that connect; [`creation`]: pods and containers that are not in the store yet
//! * this file: the calls to all plugins

mod connect;
mod creation;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use berth_proto::nri::{
    Container, ContainerAdjustment, ContainerEviction, ContainerUpdate, CreateContainerRequest,
    CreateContainerResponse, Empty, Event, LinuxResources, PluginInstance, PodSandbox, StopContainerRequest,
    StopContainerResponse, UpdateContainerRequest, UpdateContainerResponse, UpdatePodSandboxRequest,
    ValidateContainerAdjustmentRequest, ValidateContainerAdjustmentResponse,
};
use tokio::sync::Notify;

pub use creation::NriCreation;

use super::events::Notice;
use super::merge::{MergeError, MergedCreation, MergedUpdates};
use super::owners::OwnerConflict;
use super::plugin::{NriPlugin, PluginName, PluginSettings};
use super::validate::{self, Rejection};
use super::wire::PluginError;
use crate::config::{NriConfig, NriValidatorConfig};

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The daemon, as far as the requests of plugins use it.
pub trait NriHost: Send + Sync {
    /// Returns all pods and containers that run.
    fn snapshot(&self) -> Boxed<'_, (Vec<PodSandbox>, Vec<Container>)>;

    /// Changes the limits of a container.
    fn update(&self, container: String, resources: LinuxResources) -> Boxed<'_, Result<(), String>>;

    /// Stops a container.
    fn evict(&self, container: String, reason: String) -> Boxed<'_, Result<(), String>>;
}

/// A call about a pod or a container has failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NriError {
    /// A plugin rejected it.
    #[error("NRI plugin {plugin} failed: {error}")]
    Plugin {
        /// The name and index of the plugin that was called.
        plugin: PluginName,
        /// Its answer, or why there is none.
        error: PluginError,
    },
    /// The changes of the plugins cannot be merged.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// Two plugins set the same limit.
    #[error(transparent)]
    Conflict(#[from] OwnerConflict),
    /// The default validator rejected it.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// A validator plugin rejected it.
    #[error("NRI validator {plugin} rejected the container: {reason}")]
    Invalid {
        /// The name and index of the plugin that validates.
        plugin: PluginName,
        /// The text that the plugin sent.
        reason: String,
    },
    /// A plugin has connected during the creation and was not notified of it.
    #[error("an NRI plugin has connected in the meantime, and was not notified")]
    Overtaken,
    /// The changes cannot be applied.
    #[error("failed to apply the changes of NRI plugins: {0}")]
    Apply(String),
}

/// All plugins of the daemon.
pub struct Adaptation {
    settings: PluginSettings,
    validator: NriValidatorConfig,
    host: OnceLock<Arc<dyn NriHost>>,
    /// The number of reasons to make calls: connected plugins, and the validator.
    active: AtomicUsize,
    /// Creations of which no plugin was notified.
    silent: AtomicUsize,
    silent_ended: Notify,
    /// The number of plugins that were synchronized while such a creation was in progress.
    overtakings: AtomicU64,
    announced: Mutex<Announced>,
    plugins: tokio::sync::Mutex<Plugins>,
}

impl std::fmt::Debug for Adaptation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Adaptation").field("active", &self.active).finish_non_exhaustive()
    }
}

/// Pods and containers that are not in the store yet.
#[derive(Debug, Default)]
struct Announced {
    pods: BTreeMap<String, PodSandbox>,
    containers: BTreeMap<String, Container>,
}

#[derive(Debug, Default)]
struct Plugins {
    /// Sorted by index.
    list: Vec<Arc<NriPlugin>>,
    /// Containers of whose end the plugins were notified.
    stopped: BTreeSet<String>,
}

impl Plugins {
    /// Returns the plugins that are called.
    fn open(&self) -> Vec<Arc<NriPlugin>> {
        self.list.iter().filter(|plugin| !plugin.is_closed()).cloned().collect()
    }

    async fn notify(
        &self,
        notice: Notice,
        pod: &PodSandbox,
        container: Option<&Container>,
    ) -> Result<(), NriError> {
        for plugin in self.open() {
            let sent = plugin.notify(notice, pod, container).await;
            sent.map_err(|error| failed(&plugin, error))?;
        }
        Ok(())
    }
}

fn failed(plugin: &NriPlugin, error: PluginError) -> NriError {
    NriError::Plugin { plugin: plugin.name.clone(), error }
}

/// The changes that plugins request for a container that is being created.
#[derive(Clone, Debug, Default)]
pub struct CreationChanges {
    /// The changes to the container.
    pub adjustment: ContainerAdjustment,
    /// The changes to others.
    pub others: MergedUpdates,
}

impl Adaptation {
    /// Starts without plugins.
    #[must_use]
    pub fn new(config: &NriConfig, validator: &NriValidatorConfig) -> Arc<Self> {
        let validates = config.enable && validator.enable;
        Arc::new(Self {
            settings: PluginSettings {
                registration: Duration::from_secs(config.plugin_registration_timeout),
                request: Duration::from_secs(config.plugin_request_timeout),
            },
            validator: NriValidatorConfig { enable: validates, ..validator.clone() },
            host: OnceLock::new(),
            active: AtomicUsize::new(usize::from(validates)),
            silent: AtomicUsize::new(0),
            silent_ended: Notify::new(),
            overtakings: AtomicU64::new(0),
            announced: Mutex::default(),
            plugins: tokio::sync::Mutex::default(),
        })
    }

    /// Sets the daemon's side, before the first plugin connects.
    pub fn set_host(&self, host: Arc<dyn NriHost>) {
        // Only the first one is used.
        drop(self.host.set(host));
    }

    /// Whether there is anything to call. Without plugins, this is all that an event costs.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.active.load(Ordering::SeqCst) > 0
    }

    fn announced(&self) -> MutexGuard<'_, Announced> {
        self.announced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notifies the plugins of a new pod.
    ///
    /// # Errors
    /// A plugin rejects it.
    pub async fn run_pod(&self, pod: &PodSandbox) -> Result<(), NriError> {
        let plugins = self.plugins.lock().await;
        self.announced().pods.insert(pod.id.clone(), pod.clone());
        plugins.notify(Notice::RunPod, pod, None).await
    }

    /// Notifies the plugins of an event of a pod or container.
    ///
    /// # Errors
    /// A plugin rejects it.
    pub async fn notify(
        &self,
        notice: Notice,
        pod: &PodSandbox,
        container: Option<&Container>,
    ) -> Result<(), NriError> {
        let mut plugins = self.plugins.lock().await;
        if let (Notice::Remove, Some(container)) = (notice, container) {
            plugins.stopped.remove(&container.id);
        }
        plugins.notify(notice, pod, container).await
    }

    /// Notifies the plugins that the resources of a pod will be updated.
    ///
    /// # Errors
    /// A plugin rejects it.
    pub async fn update_pod(&self, request: &UpdatePodSandboxRequest) -> Result<(), NriError> {
        let plugins = self.plugins.lock().await;
        for plugin in plugins.open() {
            let sent = plugin.request::<_, Empty>(Event::UpdatePodSandbox, request).await;
            sent.map_err(|error| failed(&plugin, error))?;
        }
        Ok(())
    }

    /// Collects the changes of all plugins to a container that is being created, and validates them.
    ///
    /// # Errors
    /// A plugin rejects the container, two plugins conflict, or a validator rejects the changes.
    pub async fn create_container(
        &self,
        pod: &PodSandbox,
        container: Container,
    ) -> Result<CreationChanges, NriError> {
        let plugins = self.plugins.lock().await;
        let original = container.clone();
        let mut merged = MergedCreation::new(container);
        let called = plugins.open();
        for plugin in &called {
            let (pod, container) = (Some(pod.clone()), Some(merged.container.clone()));
            let request = CreateContainerRequest { pod, container };
            let answer = plugin.request(Event::CreateContainer, &request).await;
            let answer: Option<CreateContainerResponse> = answer.map_err(|error| failed(plugin, error))?;
            let Some(CreateContainerResponse { adjust, update, evict }) = answer else { continue };
            let name = plugin.name.to_string();
            if let Some(adjust) = adjust {
                merged.adjust(&name, adjust)?;
            }
            merged.update(&name, &update, evict)?;
        }
        let names: Vec<PluginName> = called.iter().map(|plugin| plugin.name.clone()).collect();
        validate::check(&self.validator, pod, &original, &merged.owners, &names)?;
        call_validators(&called, pod, original, &merged).await?;
        self.announced().containers.insert(merged.container.id.clone(), merged.container.clone());
        Ok(CreationChanges { adjustment: merged.adjustment, others: merged.others })
    }

    /// Collects the changes of all plugins to an update of a container. Returns the limits to set, and the changes to others.
    ///
    /// # Errors
    /// A plugin rejects the update, or two plugins conflict.
    pub async fn update_container(
        &self,
        pod: &PodSandbox,
        container: &Container,
        resources: LinuxResources,
    ) -> Result<(LinuxResources, MergedUpdates), NriError> {
        let plugins = self.plugins.lock().await;
        let (mut resources, mut merged) = (resources, MergedUpdates::default());
        for plugin in plugins.open() {
            let request = UpdateContainerRequest {
                pod: Some(pod.clone()),
                container: Some(container.clone()),
                linux_resources: Some(resources.clone()),
            };
            let answer = plugin.request(Event::UpdateContainer, &request).await;
            let answer: Option<UpdateContainerResponse> = answer.map_err(|error| failed(&plugin, error))?;
            let Some(UpdateContainerResponse { update, evict }) = answer else { continue };
            let name = plugin.name.to_string();
            merged.add(&name, &update, evict)?;
            // The next plugin sees the limits with the changes of this one.
            let own = update.iter().filter(|update| update.container_id == container.id);
            for own in own.filter_map(|update| update.linux.as_ref()?.resources.as_ref()) {
                let mut unclaimed = super::owners::Ownership::default();
                super::limits::merge(&mut unclaimed, &container.id, &name, &mut resources, own)?;
            }
        }
        drop(merged.take(&container.id));
        Ok((resources, merged))
    }

    /// Notifies the plugins of the end of a container, once. Returns the changes to others.
    ///
    /// # Errors
    /// A plugin rejects it, or two plugins conflict.
    pub async fn stop_container(
        &self,
        pod: &PodSandbox,
        container: &Container,
    ) -> Result<MergedUpdates, NriError> {
        let mut plugins = self.plugins.lock().await;
        let mut merged = MergedUpdates::default();
        if !plugins.stopped.insert(container.id.clone()) {
            return Ok(merged);
        }
        let request = StopContainerRequest { pod: Some(pod.clone()), container: Some(container.clone()) };
        for plugin in plugins.open() {
            let answer = plugin.request(Event::StopContainer, &request).await;
            let answer: Option<StopContainerResponse> = answer.map_err(|error| failed(&plugin, error))?;
            let updates = answer.map(|answer| answer.update).unwrap_or_default();
            merged.add(&plugin.name.to_string(), &updates, Vec::new())?;
        }
        Ok(merged)
    }

    /// Applies changes to containers that exist. Failures that a plugin does not ignore are returned. Containers are stopped
    /// in the background, because they may use their grace period.
    pub async fn apply(&self, updates: Vec<ContainerUpdate>, evictions: Evictions) -> Vec<FailedUpdate> {
        let Some(host) = self.host.get() else { return Vec::new() };
        for ContainerEviction { container_id: container, reason } in evictions {
            tracing::warn!(container, reason, "an NRI plugin evicts a container");
            let host = host.clone();
            tokio::spawn(async move {
                if let Err(error) = host.evict(container.clone(), reason).await {
                    tracing::warn!(container, error, "an eviction by an NRI plugin has failed");
                }
            });
        }
        let mut failures = Vec::new();
        for update in updates {
            let resources = update.linux.clone().and_then(|linux| linux.resources).unwrap_or_default();
            if let Err(error) = host.update(update.container_id.clone(), resources).await {
                let container = &update.container_id;
                tracing::warn!(container, error, "an update by an NRI plugin has failed");
                if !update.ignore_failure {
                    failures.push(FailedUpdate { update, error });
                }
            }
        }
        failures
    }

    /// Applies merged changes in the background.
    pub fn apply_later(self: &Arc<Self>, merged: MergedUpdates) {
        if merged.is_empty() {
            return;
        }
        let adaptation = self.clone();
        tokio::spawn(async move { adaptation.apply(merged.updates(), merged.evictions).await });
    }

    /// Notifies all plugins of the end of the daemon.
    pub async fn shut_down(&self) {
        let plugins = self.plugins.lock().await.open();
        for plugin in plugins {
            plugin.shut_down(self.settings.request).await;
        }
    }
}

type Evictions = Vec<ContainerEviction>;

/// An update that could not be applied.
#[derive(Clone, Debug, PartialEq)]
pub struct FailedUpdate {
    /// The limits that a plugin requested, and for which container.
    pub update: ContainerUpdate,
    /// The message of the operation that failed.
    pub error: String,
}

/// Has the validator plugins check the merged changes.
async fn call_validators(
    plugins: &[Arc<NriPlugin>],
    pod: &PodSandbox,
    container: Container,
    merged: &MergedCreation,
) -> Result<(), NriError> {
    let validators = plugins.iter().filter(|plugin| plugin.handles(Event::ValidateContainerAdjustment));
    let instance = |plugin: &Arc<NriPlugin>| PluginInstance {
        name: plugin.name.name.clone(),
        index: plugin.name.index.clone(),
    };
    let request = ValidateContainerAdjustmentRequest {
        pod: Some(pod.clone()),
        container: Some(container),
        adjust: Some(merged.adjustment.clone()),
        update: merged.others.updates(),
        owners: Some(merged.owners.message()),
        plugins: plugins.iter().map(instance).collect(),
    };
    for plugin in validators {
        let answer = plugin.request(Event::ValidateContainerAdjustment, &request).await;
        // A validator that does not answer has not approved the container.
        let answer: ValidateContainerAdjustmentResponse =
            answer.map_err(|error| failed(plugin, error))?.ok_or_else(|| {
                failed(plugin, PluginError::Protocol("the validator did not answer".to_owned()))
            })?;
        if answer.reject {
            return Err(NriError::Invalid { plugin: plugin.name.clone(), reason: answer.reason });
        }
    }
    Ok(())
}
