//! The network as a whole: runs the plugins of its configuration, in order for `ADD` and in reverse order for `DEL`.
//!
//! * this file: the parts of a network; [`attach`], [`detach`], [`check`]: the operations on a pod
//! * [`parameters`]: what a plugin receives from the client

mod attach;
mod check;
mod detach;
mod parameters;

use std::collections::{HashMap, HashSet};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::call::Call;
use crate::config::Configuration;
use crate::conflist::{Conflist, PluginEntry};
use crate::external::end_leftovers;
use crate::health::Health;
use crate::host::{Host, Places};
use crate::record::{Record, Records};
use crate::runtime_config::RuntimeConfig;
use crate::{Attachment, Options, PluginCommand, PluginObserver, Result};

pub(crate) use parameters::PluginParameters;

/// The name of the interface in a pod.
pub(crate) const INTERFACE: &str = "eth0";

/// The network of a node. Clones share it.
#[derive(Clone, Debug)]
pub struct Network {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) host: Host,
    pub(crate) records: Records,
    pub(crate) configuration: Configuration,
    pub(crate) health: Health,
    pub(crate) attachments: Mutex<HashMap<String, Attachment>>,
    bin_path: String,
    /// Pods that are being detached.
    pub(crate) ending: Mutex<HashSet<String>>,
    /// Held while the rules of a pod are restored: the pod's detachment begins before or after that.
    pub(crate) restoring: tokio::sync::Mutex<()>,
    /// How often other programs have removed rules.
    pub(crate) losses: AtomicU64,
    observer: Option<Arc<dyn PluginObserver>>,
}

impl Network {
    /// Opens the network. [`Network::status`] reports an invalid configuration. Needs a tokio runtime.
    pub fn open(options: Options) -> Result<Self> {
        end_leftovers(&options.state_dir)?;
        let records = Records::open(&options.state_dir)?;
        let attachments = Mutex::new(records.attachments()?.into_iter().collect());
        let folders: Vec<_> = options.bin_dirs.iter().map(|folder| folder.display().to_string()).collect();
        let shared = Shared {
            host: Host::open_for_daemon(Places {
                state_dir: options.state_dir.clone(),
                data_dir: options.data_dir.clone(),
                patience: options.patience,
            })?,
            records,
            configuration: Configuration::new(&options),
            health: Health::default(),
            attachments,
            bin_path: folders.join(":"),
            ending: Mutex::default(),
            restoring: tokio::sync::Mutex::default(),
            losses: AtomicU64::new(0),
            observer: options.observer.clone(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Returns the attachment of a pod, from memory.
    #[must_use]
    pub fn attachment(&self, pod: &str) -> Option<Attachment> {
        lock(&self.shared.attachments).get(pod).cloned()
    }

    /// Resumes the DHCP leases of pods after a restart. `netns` returns a pod's network namespace.
    pub fn resume(&self, netns: impl Fn(&str) -> Option<OwnedFd>) {
        if let Some(dhcp) = &self.shared.host.dhcp {
            let resumed = dhcp.resume(|owner| netns(&owner.container));
            tracing::debug!(leases = resumed.len(), "resumed DHCP leases");
        }
    }

    /// Sets the pod subnets from the kubelet; see [`Configuration::set_pod_cidr`].
    ///
    /// # Errors
    /// The text contains no valid subnets, or it or the template cannot be written.
    pub fn set_pod_cidr(&self, cidr: &str) -> Result<()> {
        self.shared.configuration.set_pod_cidr(cidr)
    }

    fn observe(&self, entry: &PluginEntry, command: PluginCommand, started: Instant, succeeded: bool) {
        if let Some(observer) = &self.shared.observer {
            observer.called(entry.kind(), command, started.elapsed(), succeeded);
        }
    }

    pub(crate) fn call<'a>(
        &'a self,
        config: &'a Conflist,
        pod: &'a str,
        netns: Option<BorrowedFd<'a>>,
        record: &'a Record,
        runtime: &'a RuntimeConfig,
        parameters: &'a PluginParameters,
    ) -> Call<'a> {
        Call {
            network: &config.name,
            version: config.version,
            container: pod,
            interface: &record.interface,
            netns,
            sandbox: &record.sandbox,
            namespace_ends: true,
            knows_all: !config.plugins.iter().any(|entry| entry.plugin.is_external()),
            runtime,
            args: &parameters.args,
            args_text: &record.args,
            bin_path: &self.shared.bin_path,
            data_dir: record.data_dir.as_deref().unwrap_or(self.shared.host.data_dir()),
            host: &self.shared.host,
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
