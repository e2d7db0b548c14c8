//! Attaches a pod (`ADD`).

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tracing::Instrument;

use super::{INTERFACE, Network, PluginParameters, lock};
use crate::conflist::Conflist;
use crate::plugins::Plugin;
use crate::record::Record;
use crate::result::CniResult;
use crate::runtime_config::{RangeEntry, RuntimeConfig};
use crate::{Attachment, Error, PluginCommand, PodAttach, Result, pin, pod_link, trace};

impl Network {
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
        record
            .attachment()
            .ok_or_else(|| Error::Invalid("invalid network: no plugin returned a result".to_owned()))
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

    /// Brings the loopback interface of a namespace up.
    pub async fn loopback_up(netns: BorrowedFd<'_>) -> Result<()> {
        /// The index of the first link of every namespace (`LOOPBACK_IFINDEX` of the kernel).
        const LOOPBACK: u32 = 1;
        pod_link::set_up(netns, LOOPBACK).await
    }
}
