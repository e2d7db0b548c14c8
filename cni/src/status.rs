//! The network's status: trouble of bridges, the `STATUS` of plugin programs (since CNI 1.1), and whether foreign
//! firewall rules drop the pods' packets.

use std::sync::Arc;

use crate::conflist::Conflist;
use crate::network::{INTERFACE, Network, PluginParameters};
use crate::nftables::{self, Packet};
use crate::plugins::Plugin;
use crate::plugins::bridge::Bridge;
use crate::record::Record;
use crate::version::Version;
use crate::{Result, Status};

impl Network {
    /// Returns whether pods can be attached, and why not. Programs are checked in the background (`STATUS`, CNI 1.1):
    /// this returns their last result without waiting.
    #[must_use]
    pub fn status(&self) -> Status {
        let not_ready = |network: &str, message: String| Status {
            ready: false,
            reason: "NetworkPluginNotReady".to_owned(),
            message,
            network: network.to_owned(),
        };
        let config = match self.shared.configuration.current() {
            Ok(config) => config,
            Err(error) => return not_ready("", error.to_string()),
        };
        // No notification arrives when the cause of a failed repair is gone: each status request may retry.
        if self.shared.host.ready.is_to_be_tried_again() {
            let network = self.clone();
            tokio::spawn(async move { network.repair_bridges().await });
        }
        match self
            .shared
            .host
            .ready
            .trouble(config.bridges().map(Bridge::name))
            .or_else(|| self.health(&config))
        {
            Some(why) => not_ready(&config.name, why),
            None => Status { ready: true, network: config.name.clone(), ..Status::default() },
        }
    }

    /// Returns the result of the last health check, and starts one if it is old.
    fn health(&self, config: &Arc<Conflist>) -> Option<String> {
        self.shared.health.of(config, || {
            let (network, config) = (self.clone(), config.clone());
            async move { find_problem(&network, &config).await }
        })
    }

    /// Describes the packets that pods of a configuration send to other hosts through this one.
    fn packets(&self, config: &Conflist) -> Vec<Packet> {
        let of_kubelet = self.shared.configuration.pod_cidr();
        let packets = config.plugins.iter().flat_map(|entry| {
            let by = entry.plugin.routes_by()?;
            let subnets = entry.plugin.ipam()?.subnets();
            let all = subnets
                .into_iter()
                .chain(of_kubelet.iter().copied().filter(|_| entry.has_capability("ipRanges")));
            Some(all.map(|from| Packet { by: by.clone(), from: from.trunc() }).collect::<Vec<_>>())
        });
        packets.flatten().collect()
    }

    /// Calls `STATUS` of the programs of a configuration (since CNI 1.1). Returns the first error.
    async fn ask_status(&self, config: &Conflist) -> Result<()> {
        let record = Record::of_none(INTERFACE);
        let parameters = PluginParameters::of(&record);
        for entry in &config.plugins {
            let call = self.call(config, "", None, &record, &record.runtime, &parameters);
            entry.plugin.status(&call, &entry.config).await?;
        }
        Ok(())
    }
}

/// Returns why pods of a configuration would have no network.
async fn find_problem(network: &Network, config: &Conflist) -> Option<String> {
    let programs =
        config.version >= Version::V1_1_0 && config.plugins.iter().any(|entry| entry.plugin.is_external());
    if programs && let Err(error) = network.ask_status(config).await {
        return Some(error.to_string());
    }
    // A firewall plugin accepts each pod's packets before foreign rules drop them; a program may do the same.
    let permits = |plugin: &Plugin| matches!(plugin, Plugin::Firewall(_) | Plugin::External(_));
    if config.plugins.iter().any(|entry| permits(&entry.plugin)) {
        return None;
    }
    match nftables::obstacle(network.packets(config)).await {
        Ok(obstacle) => obstacle,
        // A failed check does not mean that pods have no network.
        Err(error) => {
            tracing::debug!(%error, "failed to read the firewall rules of others");
            None
        }
    }
}
