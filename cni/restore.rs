//! What somebody has taken away of the network is put back: rules of pods (a reload of the host's own firewall must not cut
//! its pods off), bridges, their addresses, their ports. The kernel tells of it; nothing is looked at meanwhile.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::conflist::Conflist;
use crate::network::{Network, Told, lock};
use crate::nftables::{self, Loss};
use crate::plugins::interface::host_link;
use crate::record::{MadeBy, Record};
use crate::{Context, Result};

/// Delay between a change and the check for it. An attachment makes several changes at once.
const SOON: Duration = Duration::from_millis(50);

impl Network {
    /// Puts back what is not there of rules and bridges, now and whenever somebody takes it away, as long as this process
    /// runs. Needs a tokio runtime.
    pub fn keep(&self) {
        let network = self.clone();
        tokio::spawn(async move {
            if let Err(error) = network.rules_kept().await {
                tracing::warn!(%error, "rules of pods that somebody takes away will not be put back");
            }
        });
        let network = self.clone();
        tokio::spawn(async move {
            network.stand_ready().await;
            if let Err(error) = network.bridges_kept().await {
                tracing::warn!(%error, "bridges of pods that somebody changes will not be put right");
            }
        });
    }

    /// Bridges that pods were attached to before this daemon has started.
    async fn stand_ready(&self) {
        for (_, record, config) in self.attached(|_| true).await {
            for bridge in config.bridges() {
                let result = record.result.clone().unwrap_or_default();
                // What is wrong shows in the status.
                if let Err(error) = bridge.stand_ready(&self.shared.host, &result).await {
                    tracing::debug!(bridge = bridge.name(), %error, "failed to prepare the bridge of a running pod");
                }
            }
        }
        self.join_again(|_| true).await;
    }

    /// The pods that are attached to bridges, of those that `of` selects.
    async fn attached(&self, of: impl Fn(&str) -> bool) -> Vec<(String, Record, Arc<Conflist>)> {
        let mut configs: HashMap<MadeBy, Option<Arc<Conflist>>> = HashMap::new();
        let mut attached = Vec::new();
        let pods = self.shared.records.pods().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "failed to read which pods are attached to bridges");
            Vec::new()
        });
        for pod in pods.into_iter().filter(|pod| of(pod)) {
            let record = match self.shared.records.read(&pod).await {
                Ok(record) => record.filter(|record| record.result.is_some()),
                Err(error) => {
                    tracing::warn!(pod, %error, "failed to read the attachment of a pod");
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

    /// Puts bridges right that somebody has changed.
    pub(crate) async fn repair_bridges(&self) {
        let any_pod = !lock(&self.shared.attachments).is_empty();
        // Records are read only where something has to be put right.
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

    /// Connects pods whose port is down or on no bridge, of those that `of` selects.
    async fn join_again(&self, of: impl Fn(&str) -> bool) {
        let attached = self.attached(of).await;
        if attached.is_empty() {
            return;
        }
        let links = match self.shared.host.links.links().await {
            Ok(links) => links,
            Err(error) => return tracing::warn!(%error, "failed to look for disconnected bridge ports"),
        };
        let off = links.into_iter().filter(|link| link.controller.is_none() || !link.up);
        let off: HashSet<String> = off.map(|link| link.name).collect();
        for (pod, record, config) in attached {
            // One that is being detached is off the bridge on purpose.
            if !off.contains(&host_link(&pod, &record.interface)) || lock(&self.shared.ending).contains(&pod)
            {
                continue;
            }
            let (told, ips) = (Told::of(&record), record.result.clone().unwrap_or_default().ips);
            let call = self.call(&config, &pod, None, &record, &record.runtime, &told);
            for bridge in config.bridges() {
                match bridge.join_again(&call, &ips).await {
                    Ok(()) => {
                        tracing::warn!(pod, bridge = bridge.name(), "connected the pod to its bridge again")
                    }
                    Err(error) => {
                        tracing::warn!(pod, %error, "failed to connect the pod to its bridge again")
                    }
                }
            }
        }
    }

    async fn rules_kept(&self) -> Result<()> {
        let mut watch = nftables::Watch::open().doing("listen to changes of nftables")?;
        // While nobody listened.
        let mut loss = Loss::everything();
        let known = nftables::owners().await?.into_iter().map(|owner| owner.container);
        let mut known: Option<HashSet<String>> = Some(known.collect());
        loop {
            // Pods that are being attached look at this when they are.
            self.shared.losses.fetch_add(1, Ordering::SeqCst);
            let made = &self.shared.host.made;
            // Others change rules of ours together with adding them again: another process of berth does.
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
            loss = watch.loss().await.doing("listen to changes of nftables")?;
        }
    }

    /// Puts the rules of pods back; `lacked` says of which it is told.
    async fn restore(&self, of: impl Fn(&str) -> bool, lacked: impl Fn(&str) -> bool) {
        let mut restored = 0;
        let recorded = self.shared.records.pods().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "failed to put the rules of pods back");
            Vec::new()
        });
        for pod in recorded.into_iter().filter(|pod| of(pod)) {
            match self.restore_pod(&pod).await {
                Ok(true) if lacked(&pod) => restored += 1,
                Ok(_) => {}
                Err(error) => tracing::warn!(pod, %error, "failed to put the rules of a pod back"),
            }
        }
        if restored > 0 {
            tracing::warn!(pods = restored, "rules of pods were not in nftables any more: they are put back");
        }
    }

    /// Puts back what rules a pod has by its configuration; whether it has any.
    pub(crate) async fn restore_pod(&self, pod: &str) -> Result<bool> {
        let _alone = self.shared.restoring.lock().await;
        if lock(&self.shared.ending).contains(pod) {
            return Ok(false);
        }
        let Some(record) = self.shared.records.read(pod).await? else { return Ok(false) };
        // One that is still being attached sees to its rules itself.
        let Some(result) = &record.result else { return Ok(false) };
        let config = self.shared.configuration.recorded(&record.made_by())?;
        let told = Told::of(&record);
        let mut any = false;
        for entry in &config.plugins {
            let runtime = told.of_entry(entry)?;
            let call = self.call(&config, pod, None, &record, &runtime, &told);
            any |= entry.plugin.restore(&call, result).await?;
        }
        Ok(any)
    }
}
