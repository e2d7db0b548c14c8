//! The network of the pods, and the lock that separates attachments from the removal of those without a pod.

use std::collections::HashSet;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use berth_cni::{Builtin, Network, PluginObserver, PodAttach, sysctls};

use crate::config::Config;
use crate::error::CriError;
use crate::store::{PodState, Store};

/// Attaches pods to a network and detaches them.
#[tonic::async_trait]
pub trait NetworkAttacher: fmt::Debug + Send + Sync {
    /// Attaches a pod, then sets the sysctls of its interfaces.
    ///
    /// # Errors
    /// A plugin fails, or the kernel refuses a sysctl. The caller detaches the pod then.
    async fn attach(&self, pod: PodAttach<'_>, sysctls: Vec<(String, String)>) -> Result<(), CriError>;

    /// Detaches a pod. One that is not attached is a success.
    ///
    /// # Errors
    /// A plugin fails, or an address cannot be released.
    async fn detach(&self, pod: &str, netns: Option<BorrowedFd<'_>>) -> Result<(), berth_cni::Error>;
}

#[tonic::async_trait]
impl NetworkAttacher for Network {
    async fn attach(&self, pod: PodAttach<'_>, sysctls: Vec<(String, String)>) -> Result<(), CriError> {
        let netns = pod.netns;
        self.add(pod).await?;
        Ok(sysctls::set(netns, sysctls).await?)
    }

    async fn detach(&self, pod: &str, netns: Option<BorrowedFd<'_>>) -> Result<(), berth_cni::Error> {
        self.del(pod, netns).await
    }
}

/// The network of the pods.
#[derive(Debug)]
pub struct PodNetwork {
    /// Attachments, addresses and the state of the configuration.
    pub network: Network,
    /// The network itself; a fake in unit tests.
    attacher: Box<dyn NetworkAttacher>,
    /// Shared while a pod is attached to the network; exclusive while attachments without a pod are removed.
    attaching: tokio::sync::RwLock<()>,
}

impl PodNetwork {
    /// Opens the configured network. `observer` receives the calls of plugins.
    ///
    /// # Errors
    /// A folder cannot be created, or a record cannot be read.
    pub fn open(config: &Config, observer: Arc<dyn PluginObserver>) -> Result<Self, CriError> {
        let network = Network::open(berth_cni::Options { observer: Some(observer), ..options(config) })?;
        let attacher = Box::new(network.clone());
        Ok(Self { network, attacher, attaching: tokio::sync::RwLock::default() })
    }

    /// Attaches pods with another attacher.
    #[cfg(test)]
    pub(crate) fn attached_by(self, attacher: impl NetworkAttacher + 'static) -> Self {
        Self { attacher: Box::new(attacher), ..self }
    }

    /// Attaches a pod, then sets the sysctls of its interfaces.
    ///
    /// # Errors
    /// As [`NetworkAttacher::attach`].
    pub async fn attach(&self, pod: PodAttach<'_>, sysctls: Vec<(String, String)>) -> Result<(), CriError> {
        let _attaching = self.attaching.read().await;
        self.attacher.attach(pod, sysctls).await
    }

    /// Detaches a pod. One that is not attached is a success.
    ///
    /// # Errors
    /// As [`NetworkAttacher::detach`].
    pub async fn detach(&self, pod: &str, netns: Option<BorrowedFd<'_>>) -> Result<(), berth_cni::Error> {
        self.attacher.detach(pod, netns).await
    }

    /// Frees the resources that belong to no pod of the store, and keeps the network in repair from now on.
    pub async fn sweep(&self, store: &Store) {
        // No pod may be attached meanwhile: plugins receive the list of live pods.
        let _exclusive = self.attaching.write().await;
        let live: HashSet<String> = store
            .pods()
            .into_iter()
            .filter(|pod| pod.state() != PodState::NotReady { released: true })
            .map(|pod| pod.id.as_str().to_owned())
            .collect();
        self.network.resume(|id| store.pods().iter().find(|pod| pod.id.as_str() == id)?.netns());
        match self.network.gc(&live).await {
            Ok(freed) if freed.is_empty() => {}
            Ok(freed) => tracing::info!(?freed, "freed network resources without a pod"),
            Err(error) => tracing::warn!(%error, "failed to free network resources without a pod"),
        }
        self.network.keep();
    }
}

/// Returns the network options of a config.
#[must_use]
pub fn options(config: &Config) -> berth_cni::Options {
    berth_cni::Options {
        conf_dir: config.cni_conf_dir.clone(),
        template: config.cni_conf_template.clone(),
        bin_dirs: config.cni_bin_dirs.clone(),
        external: config.cni_external_plugins.clone(),
        data_dir: config.cni_data_dir.clone(),
        patience: std::time::Duration::from_secs(config.cni_plugin_timeout),
        state_dir: config.root.join("network"),
        builtin: Builtin {
            bridge: config.network.bridge.clone(),
            subnets: config.network.subnets.clone(),
            mtu: config.network.mtu,
        },
        observer: None,
    }
}
