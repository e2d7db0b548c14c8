//! All plugins, in the order of their indexes. One call at a time: each plugin sees the events of a container in order, and a
//! plugin that connects gets all pods and containers between two events.
//!
//! A pod or container exists for plugins before it is in the store. Those that plugins were notified of are *announced*
//! until they are in the store; a plugin that connects gets both. If no plugin was there to be notified, the creation is
//! counted, and a plugin that connects waits for it.
//!
//! * this file: the plugins, and the daemon as they see it
//! * [`connect`]: plugins that connect; [`creation`]: pods and containers that are not in the store yet
//! * [`calls`]: the calls to all plugins; [`changes`]: applies the changes that they request
mod calls;
mod changes;
mod connect;
mod creation;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use berth_proto::nri::{Container, LinuxResources, PodSandbox};
use tokio::sync::Notify;

pub use calls::CreationChanges;
pub use changes::FailedUpdate;
pub use creation::NriCreation;

use super::events::Notice;
use super::merge::MergeError;
use super::owners::OwnerConflict;
use super::plugin::{NriPlugin, PluginName, PluginSettings};
use super::validate::Rejection;
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
    /// Unannounced creations: those that began when no plugin was connected.
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

    /// Notifies all plugins of the end of the daemon.
    pub async fn shut_down(&self) {
        let plugins = self.plugins.lock().await.open();
        for plugin in plugins {
            plugin.shut_down(self.settings.request).await;
        }
    }
}
