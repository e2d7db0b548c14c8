//! Restores what other programs have removed: rules of pods (a reload of the host's firewall must not disconnect its
//! pods), bridges, their addresses and their ports. The kernel reports changes; nothing is polled.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::conflist::Conflist;
use crate::names::host_link;
use crate::network::{Network, PluginParameters, lock};
use crate::nftables::{self, Loss};
use crate::record::{MadeBy, Record};
use crate::{Context, Result};

/// The delay between a change and its check. An attachment makes several changes together.
const SOON: Duration = Duration::from_millis(50);

impl Network {
    /// Restores missing rules and bridges, now and after each change, as long as this process runs. Needs a tokio
    /// runtime.
    pub fn keep(&self) {
        let network = self.clone();
        tokio::spawn(async move {
            if let Err(error) = network.rules_kept().await {
                tracing::warn!(%error, "failed to watch nftables: removed rules of pods will not be restored");
            }
        });
        let network = self.clone();
        tokio::spawn(async move {
            network.stand_ready().await;
            if let Err(error) = network.bridges_kept().await {
                tracing::warn!(%error, "failed to watch links: changed bridges of pods will not be repaired");
            }
        });
    }

    /// Prepares the bridges of pods that were attached before this daemon started.
    async fn stand_ready(&self) {
        for (_, record, config) in self.attached(|_| true).await {
            for bridge in config.bridges() {
                let result = record.result.clone().unwrap_or_default();
                // The status reports the error.
                if let Err(error) = bridge.stand_ready(&self.shared.host, &result).await {
                    tracing::debug!(bridge = bridge.name(), %error, "failed to prepare the bridge of a running pod");
                }
            }
        }
        self.join_again(|_| true).await;
    }

    /// Returns the pods that are attached to bridges, of those that `of` selects.
    async fn attached(&self, of: impl Fn(&str) -> bool) -> Vec<(String, Record, Arc<Conflist>)> {
        let mut configs: HashMap<MadeBy, Option<Arc<Conflist>>> = HashMap::new();
        let mut attached = Vec::new();
        let pods = self.shared.records.pods().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "failed to list the pods that are attached to bridges");
            Vec::new()
        });
        for pod in pods.into_iter().filter(|pod| of(pod)) {
            let record = match self.shared.records.read(&pod).await {
                Ok(record) => record.filter(|record| record.result.is_some()),
                Err(error) => {
                    tracing::warn!(pod, %error, "failed to read the record of an attachment");
                    None
                }
            };
            let Some(record) = record else { continue };
            let read = |by: &MadeBy| self.shared.configuration.recorded(by).ok().map(Arc::new);
            let config = configs.entry(record.made_by()).or_insert_with_key(read);
            if let Some(config) = config.clone().filter(|config| config.bridges().next().is_some()) {
                attached.push((pod, record, config));
            }
        }
        attached
    }

    async fn bridges_kept(&self) -> Result<()> {
        loop {
            self.repair_bridges().await;
            self.shared.host.ready.changed().await?;
            tokio::time::sleep(SOON).await;
        }
    }

    /// Repairs bridges that other programs have changed.
    pub(crate) async fn repair_bridges(&self) {
        let any_pod = !lock(&self.shared.attachments).is_empty();
        // The records are read only if a bridge needs a repair.
        let sound = self.shared.host.ready.is_sound().await;
        let attached = if any_pod && !sound { self.attached(|_| true).await } else { Vec::new() };
        let in_use = |bridge: &str| {
            let has = |config: &Conflist| config.bridges().any(|other| other.name() == bridge);
            any_pod
                && (self.shared.configuration.current().is_ok_and(|config| has(&config))
                    || attached.iter().any(|(_, _, config)| has(config)))
        };
        if self.shared.host.ready.repair(&self.shared.host.links, in_use).await {
            return self.join_again(|_| true).await;
        }
        let mut disconnected = self.shared.host.ready.disconnected().await;
        disconnected.retain(|pod| {
            lock(&self.shared.attachments).contains_key(pod) && !lock(&self.shared.ending).contains(pod)
        });
        if !disconnected.is_empty() {
            self.join_again(|pod| disconnected.contains(pod)).await;
        }
    }

    /// Attaches ports of pods that are down or on no bridge to their bridges again, for the pods that `of` selects.
    async fn join_again(&self, of: impl Fn(&str) -> bool) {
        let attached = self.attached(of).await;
        if attached.is_empty() {
            return;
        }
        let links = match self.shared.host.links.links().await {
            Ok(links) => links,
            Err(error) => return tracing::warn!(%error, "failed to list disconnected bridge ports"),
        };
        let off = links.into_iter().filter(|link| link.controller.is_none() || !link.up);
        let off: HashSet<String> = off.map(|link| link.name).collect();
        for (pod, record, config) in attached {
            // The port of a pod that is being detached was disconnected deliberately.
            if !off.contains(&host_link(&pod, &record.interface)) || lock(&self.shared.ending).contains(&pod)
            {
                continue;
            }
            let (parameters, ips) =
                (PluginParameters::of(&record), record.result.clone().unwrap_or_default().ips);
            let call = self.call(&config, &pod, None, &record, &record.runtime, &parameters);
            for bridge in config.bridges() {
                match bridge.join_again(&call, &ips).await {
                    Ok(()) => {
                        tracing::warn!(pod, bridge = bridge.name(), "connected pod to its bridge again")
                    }
                    Err(error) => {
                        tracing::warn!(pod, %error, "failed to connect pod to its bridge again")
                    }
                }
            }
        }
    }

    async fn rules_kept(&self) -> Result<()> {
        let mut watch = nftables::RuleWatch::open().doing("subscribe to changes of nftables")?;
        // Changes before this point were not reported.
        let mut loss = Loss::everything();
        let known = nftables::owners().await?.into_iter().map(|owner| owner.container);
        let mut known: Option<HashSet<String>> = Some(known.collect());
        loop {
            // A pod that is being attached compares this counter afterwards.
            self.shared.losses.fetch_add(1, Ordering::SeqCst);
            let made = &self.shared.host.made;
            // Another process of berth replaces rules in one batch: the rules may still exist.
            if loss.everything || (loss.rules && !made.is_whole().await?) {
                made.clear();
                let lacked = |pod: &str| known.as_ref().is_none_or(|known| !known.contains(pod));
                self.restore(|_| true, lacked).await;
            } else {
                let lacking: HashSet<String> =
                    loss.elements.into_iter().map(|owner| owner.container).collect();
                self.restore(|pod| lacking.contains(pod), |_| true).await;
            }
            known = None;
            loss = watch.loss().await.doing("receive changes of nftables")?;
        }
    }

    /// Restores the rules of pods. `lacked` selects the pods that are counted in the log.
    async fn restore(&self, of: impl Fn(&str) -> bool, lacked: impl Fn(&str) -> bool) {
        let mut restored = 0;
        let recorded = self.shared.records.pods().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "failed to restore the rules of pods");
            Vec::new()
        });
        for pod in recorded.into_iter().filter(|pod| of(pod)) {
            match self.restore_pod(&pod).await {
                Ok(true) if lacked(&pod) => restored += 1,
                Ok(_) => {}
                Err(error) => tracing::warn!(pod, %error, "failed to restore the rules of a pod"),
            }
        }
        if restored > 0 {
            tracing::warn!(pods = restored, "restored missing nftables rules of pods");
        }
    }

    /// Restores the rules that a pod has by its configuration. Returns whether it has any.
    pub(crate) async fn restore_pod(&self, pod: &str) -> Result<bool> {
        let _alone = self.shared.restoring.lock().await;
        if lock(&self.shared.ending).contains(pod) {
            return Ok(false);
        }
        let Some(record) = self.shared.records.read(pod).await? else { return Ok(false) };
        // The attachment in progress restores its rules itself.
        let Some(result) = &record.result else { return Ok(false) };
        let config = self.shared.configuration.recorded(&record.made_by())?;
        let parameters = PluginParameters::of(&record);
        let mut any = false;
        for entry in &config.plugins {
            let runtime = parameters.of_entry(entry)?;
            let call = self.call(&config, pod, None, &record, &runtime, &parameters);
            any |= entry.plugin.restore(&call, result).await?;
        }
        Ok(any)
    }
}
