//! How packets reach a pod, and what its attachment waits for, for an operator.

use std::collections::BTreeSet;

use crate::netlink::Link;
use crate::network::Network;
use crate::nftables::describe::elements_of;
use crate::ongoing::PluginCall;
use crate::{Result, names};

/// A link of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostLink {
    /// The name.
    pub name: String,
    /// `veth`, `bridge` and so on; empty for a physical link.
    pub kind: String,
    /// Whether it is up.
    pub up: bool,
    /// The MTU in bytes.
    pub mtu: u32,
    /// The hardware address.
    pub mac: String,
    /// The bridge or VRF that it belongs to.
    pub controller: String,
    /// Whether it is a bridge port that forwards packets.
    pub forwards: bool,
    /// Its addresses.
    pub addresses: Vec<String>,
}

impl Network {
    /// Returns the plugin programs that run, oldest first.
    #[must_use]
    pub fn plugin_calls(&self) -> Vec<PluginCall> {
        self.shared.host.ongoing.calls()
    }

    /// Returns the host's links of a pod, each followed by the bridge or VRF that it belongs to. They are identified by
    /// the result of the attachment, and by the alias that berth gives them.
    ///
    /// # Errors
    /// The links cannot be listed.
    pub async fn host_links(&self, pod: &str) -> Result<Vec<HostLink>> {
        let links = self.shared.host.links.links().await?;
        let named: BTreeSet<String> = self.attachment(pod).map_or_else(BTreeSet::new, |attachment| {
            let of_host = attachment.result.interfaces.into_iter().filter(|found| found.sandbox.is_empty());
            of_host.map(|interface| interface.name).collect()
        });
        let owned = |link: &Link| {
            named.contains(&link.name)
                || link.alias.as_deref().and_then(names::pod_of_alias).is_some_and(|owner| owner == pod)
        };
        let own: Vec<&Link> = links.iter().filter(|link| owned(link)).collect();
        let above = |link: &&Link| links.iter().find(|found| Some(found.index) == link.controller);
        let mut shown: Vec<&Link> = own.clone();
        for controller in own.iter().filter_map(above) {
            if !shown.iter().any(|link| link.index == controller.index) {
                shown.push(controller);
            }
        }
        let mut described = Vec::new();
        for link in shown {
            let controller = links.iter().find(|found| Some(found.index) == link.controller);
            let addresses = self.shared.host.links.addresses(link.index).await?;
            described.push(HostLink {
                name: link.name.clone(),
                kind: link.kind.as_ref().map(ToString::to_string).unwrap_or_default(),
                up: link.up,
                mtu: link.mtu,
                mac: link.mac_text(),
                controller: controller.map(|found| found.name.clone()).unwrap_or_default(),
                forwards: link.forwards,
                addresses: addresses.iter().map(ToString::to_string).collect(),
            });
        }
        Ok(described)
    }

    /// Returns the elements of nftables sets and maps that belong to a pod: `SET: KEY -> VALUE`.
    ///
    /// # Errors
    /// The elements cannot be listed.
    pub async fn rules_of(&self, pod: &str) -> Result<Vec<String>> {
        elements_of(pod).await
    }
}
