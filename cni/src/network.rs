//! The network as a whole: runs the plugins of its configuration, in order for `ADD` and in reverse order for `DEL`.

use std::collections::{HashMap, HashSet};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde_json::Value;
use tracing::Instrument;

use crate::call::{Call, parse_args};
use crate::config::Configuration;
use crate::conflist::{Conflist, PluginEntry};
use crate::external::end_leftovers;
use crate::health::Health;
use crate::host::{Host, Places};
use crate::plugins::Plugin;
use crate::record::{Record, Records};
use crate::result::CniResult;
use crate::runtime_config::{RangeEntry, RuntimeConfig};
use crate::version::Version;
use crate::{
    Attachment, Error, Options, PluginCommand, PluginObserver, PodAttach, Result, pin, pod_link, trace,
};

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

    /// Attaches a pod.
    ///
    /// # Errors
    /// The network is not ready, or a plugin failed. Everything that was created is removed.
    pub async fn add(&self, pod: PodAttach<'_>) -> Result<Attachment> {
        let config =
            self.shared.configuration.current().map_err(|error| Error::NotReady(error.to_string()))?;
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            pod.namespace, pod.name, pod.id, pod.uid
        );
        let external = config.plugins.iter().any(|entry| entry.plugin.is_external());
        let pinned = external.then(|| pin::path_of(pod.id));
        let path = |path: &PathBuf| path.display().to_string();
        let mut record = Record {
            interface: INTERFACE.to_owned(),
            args,
            runtime: self.with_ranges(pod.runtime.clone()),
            result: None,
            config: Some(config.text.clone()),
            built_in: config.built_in,
            data_dir: Some(self.shared.host.data_dir().to_owned()),
            sandbox: pinned.as_ref().map_or_else(|| pod.netns_path.to_owned(), path),
            pinned,
        };
        self.shared.records.write(pod.id, &record).await?;
        match self.attach(&config, &pod, &mut record).await {
            Ok(attachment) => {
                lock(&self.shared.attachments).insert(pod.id.to_owned(), attachment.clone());
                Ok(attachment)
            }
            Err(error) => match self.del(pod.id, Some(pod.netns)).await {
                Ok(()) => Err(error),
                Err(undo) => Err(Error::Several(vec![error, undo])),
            },
        }
    }

    async fn attach(
        &self,
        config: &Conflist,
        pod: &PodAttach<'_>,
        record: &mut Record,
    ) -> Result<Attachment> {
        let losses = self.shared.losses.load(Ordering::SeqCst);
        record.result = Some(self.add_all(config, pod.id, pod.netns, record).await?);
        self.shared.records.write(pod.id, record).await?;
        if self.shared.losses.load(Ordering::SeqCst) != losses {
            self.restore_pod(pod.id).await?;
        }
        record.attachment().ok_or_else(|| Error::Invalid("the network returned no result".to_owned()))
    }

    /// Adds the subnets that the kubelet has set, for plugins with the capability.
    fn with_ranges(&self, mut runtime: RuntimeConfig) -> RuntimeConfig {
        let range = |subnet| vec![RangeEntry { subnet, range_start: None, range_end: None, gateway: None }];
        if runtime.ip_ranges.is_empty() {
            runtime.ip_ranges = self.shared.configuration.pod_cidr().into_iter().map(range).collect();
        }
        runtime
    }

    async fn add_all(
        &self,
        config: &Conflist,
        pod: &str,
        netns: BorrowedFd<'_>,
        record: &Record,
    ) -> Result<CniResult> {
        if let Some(path) = &record.pinned {
            pin::create(netns, path, self.shared.host.state_dir())?;
        }
        let parameters = PluginParameters::of(record);
        parameters.check_ports(config)?;
        let plugins = self.add_plugins(config, pod, netns, record, &parameters);
        let (up, result) = futures_util::future::join(Self::loopback_up(netns), plugins).await;
        up.and(result)
    }

    async fn add_plugins(
        &self,
        config: &Conflist,
        pod: &str,
        netns: BorrowedFd<'_>,
        record: &Record,
        parameters: &PluginParameters,
    ) -> Result<CniResult> {
        let mut result = CniResult::default();
        for entry in &config.plugins {
            // The loopback of every pod is brought up, independent of the configuration; its result is not part of the
            // pod's.
            if matches!(entry.plugin, Plugin::Loopback(_)) {
                continue;
            }
            let runtime = parameters.of_entry(entry)?;
            let call = self.call(config, pod, Some(netns), record, &runtime, parameters);
            let started = Instant::now();
            let span = trace::plugin(entry.kind(), PluginCommand::Add);
            let added = entry.plugin.add(&call, &entry.config, result).instrument(span.clone()).await;
            trace::end(&span, &added);
            self.observe(entry, PluginCommand::Add, started, added.is_ok());
            result = added?;
            tracing::debug!(pod, plugin = entry.kind(), elapsed = ?started.elapsed(), "network plugin attached pod");
        }
        Ok(result)
    }

    fn observe(&self, entry: &PluginEntry, command: PluginCommand, started: Instant, succeeded: bool) {
        if let Some(observer) = &self.shared.observer {
            observer.called(entry.kind(), command, started.elapsed(), succeeded);
        }
    }

    /// Brings the loopback interface of a namespace up.
    pub async fn loopback_up(netns: BorrowedFd<'_>) -> Result<()> {
        /// The index of the first link of every namespace (`LOOPBACK_IFINDEX` of the kernel).
        const LOOPBACK: u32 = 1;
        pod_link::set_up(netns, LOOPBACK).await
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

    /// Detaches a pod before its namespace is destroyed, as far as it is attached. Continues after an error and reports
    /// all errors.
    ///
    /// # Errors
    /// Something could not be released. A retry continues there.
    pub async fn del(&self, pod: &str, netns: Option<BorrowedFd<'_>>) -> Result<()> {
        let Some(record) = self.shared.records.read(pod).await? else {
            lock(&self.shared.attachments).remove(pod);
            return self.shared.records.remove(pod).await;
        };
        let mut errors = Vec::new();
        {
            let _alone = self.shared.restoring.lock().await;
            lock(&self.shared.ending).insert(pod.to_owned());
        }
        let _ended = Ended { network: self, pod };
        match self.shared.configuration.recorded(&record.made_by()) {
            Ok(config) => self.del_all(&config, pod, &record, netns, &mut errors).await,
            Err(error) => errors.push(error),
        }
        if let Some(path) = &record.pinned {
            errors.extend(pin::unpin(path).err());
        }
        if errors.is_empty() {
            lock(&self.shared.attachments).remove(pod);
            self.shared.records.remove(pod).await?;
            return self.clear_away(&record).await;
        }
        Err(Error::Several(errors))
    }

    /// Removes a bridge of the built-in network after its last pod is detached, if the active network has another
    /// bridge.
    async fn clear_away(&self, record: &Record) -> Result<()> {
        let made_by = record.made_by();
        if !record.built_in
            || self
                .shared
                .configuration
                .current()
                .is_ok_and(|config| Some(&config.text) == record.config.as_ref())
        {
            return Ok(());
        }
        let config = self.shared.configuration.recorded(&made_by)?;
        let current = self.shared.configuration.current();
        let names =
            |config: &Conflist| config.bridges().map(|bridge| bridge.name().to_owned()).collect::<Vec<_>>();
        let mut used: Vec<String> = current.iter().flat_map(|config| names(config)).collect();
        for pod in self.shared.records.pods().await? {
            let config = self.shared.records.read(&pod).await?.map(|record| record.made_by());
            let config = config.and_then(|by| self.shared.configuration.recorded(&by).ok());
            used.extend(config.iter().flat_map(names));
        }
        for bridge in config.bridges().filter(|bridge| !used.iter().any(|name| name == bridge.name())) {
            tracing::info!(
                bridge = bridge.name(),
                "removing the bridge: its last pod is gone, and the network uses another bridge"
            );
            bridge.teardown(&self.shared.host).await?;
        }
        Ok(())
    }

    async fn del_all(
        &self,
        config: &Conflist,
        pod: &str,
        record: &Record,
        netns: Option<BorrowedFd<'_>>,
        errors: &mut Vec<Error>,
    ) {
        let parameters = PluginParameters::of(record);
        let result = record.result.clone().unwrap_or_default();
        for entry in config.plugins.iter().rev() {
            if matches!(entry.plugin, Plugin::Loopback(_)) {
                continue;
            }
            let deleted = match parameters.of_entry(entry) {
                Ok(runtime) => {
                    let call = self.call(config, pod, netns, record, &runtime, &parameters);
                    let started = Instant::now();
                    let span = trace::plugin(entry.kind(), PluginCommand::Del);
                    let deleted =
                        entry.plugin.del(&call, &entry.config, &result).instrument(span.clone()).await;
                    trace::end(&span, &deleted);
                    self.observe(entry, PluginCommand::Del, started, deleted.is_ok());
                    deleted
                }
                Err(error) => Err(error),
            };
            errors.extend(deleted.err());
        }
    }

    /// Checks that a pod's network is unchanged (`CHECK`).
    ///
    /// # Errors
    /// The first difference, or the pod is not attached.
    pub async fn check(&self, pod: &str, netns: BorrowedFd<'_>) -> Result<()> {
        let record = self.shared.records.read(pod).await?;
        let record = record.ok_or_else(|| Error::Invalid(format!("pod {pod} is not attached")))?;
        let result = record.result.clone();
        let result = result.ok_or_else(|| Error::Invalid(format!("pod {pod} is only partly attached")))?;
        let config = self.shared.configuration.recorded(&record.made_by())?;
        if config.disable_check || config.version < Version::V0_4_0 {
            return Ok(());
        }
        let parameters = PluginParameters::of(&record);
        for entry in &config.plugins {
            let runtime = parameters.of_entry(entry)?;
            let call = self.call(&config, pod, Some(netns), &record, &runtime, &parameters);
            entry.plugin.check(&call, &entry.config, &result).await?;
        }
        Ok(())
    }
}

/// Marks a pod as being detached, until it is dropped: also when the caller is cancelled.
struct Ended<'a> {
    network: &'a Network,
    pod: &'a str,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        lock(&self.network.shared.ending).remove(self.pod);
    }
}

/// The runtime's parameters for the plugins of one attachment.
#[derive(Debug)]
pub(crate) struct PluginParameters {
    pub(crate) args: std::collections::BTreeMap<String, String>,
    /// The runtime configuration by capability.
    runtime: Value,
}

impl PluginParameters {
    pub(crate) fn of(record: &Record) -> Self {
        Self { args: parse_args(&record.args), runtime: serde_json::json!(record.runtime) }
    }

    /// Returns the runtime configuration for a plugin: the parts whose capabilities it declares (CNI conventions,
    /// "capabilities").
    pub(crate) fn of_entry(&self, entry: &PluginEntry) -> Result<RuntimeConfig> {
        let all = self.runtime.as_object().cloned().unwrap_or_default();
        let some = all.into_iter().filter(|(name, _)| entry.has_capability(name));
        serde_json::from_value(Value::Object(some.collect()))
            .map_err(|error| Error::Invalid(format!("invalid runtime configuration: {error}")))
    }

    /// Rejects host ports that no plugin would map.
    fn check_ports(&self, config: &Conflist) -> Result<()> {
        let ports = self.runtime.get("portMappings").and_then(Value::as_array);
        let taken = config.plugins.iter().any(|entry| entry.has_capability("portMappings"));
        match ports.filter(|ports| !taken && !ports.is_empty()) {
            None => Ok(()),
            Some(ports) => {
                let ports: Vec<String> =
                    ports.iter().filter_map(|port| port.get("hostPort")).map(Value::to_string).collect();
                let why = "no plugin of the network has the capability portMappings";
                Err(Error::Unsupported(format!("host port {}: {why} ({})", ports.join(", "), config.name)))
            }
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
