//! The plugin `bridge`: a veth pair whose host end is a port of a bridge.
//!
//! * this file: the plugin; [`port`]: a pod's port
//! * the bridge itself: [`crate::bridges`]

mod port;

use std::collections::BTreeSet;

use futures_util::future::join;
use ipnet::IpNet;
use serde_json::Value;

use super::commands::{Choice, Commands};
use super::interface;
use super::with_undo;
use crate::addresses::nth;
use crate::bridges::{Keys, ReadyBridge};
use crate::call::Call;
use crate::external::Search;
use crate::ipam::{self, Ipam};
use crate::mac::parse_mac;
use crate::names::host_link;
use crate::netlink::Link;
use crate::nftables::{masquerade, spoof};
use crate::result::{CniResult, Interface, Ip, Route};
use crate::{Error, Result, pod_link};

/// A compiled configuration of `bridge`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Bridge {
    keys: Keys,
    pub(super) ipam: Option<Ipam>,
}

impl Bridge {
    pub(super) fn compile(config: &Value, search: &Search) -> std::result::Result<Self, String> {
        let keys = Keys::compile(config)?;
        let ipam = Ipam::compile(config, search)?;
        if ipam.is_some() && keys.disable_container_interface {
            return Err("disableContainerInterface: cannot be combined with ipam".to_owned());
        }
        Ok(Self { keys, ipam })
    }

    /// Attaches a pod. If `addresses` is `None`, they are requested over the new link.
    async fn attach(
        &self,
        call: &Call<'_>,
        config: &Value,
        addresses: Option<CniResult>,
    ) -> Result<CniResult> {
        let host = &call.host.links;
        let name = host_link(call.container, call.interface);
        let late_ipam = self.ipam.as_ref().filter(|_| addresses.is_none());
        let mut result = addresses.unwrap_or_default();
        self.complete(&mut result);
        let mut made = self.create_veth(call, &name, &config_mac(config), &result.ips).await?;
        let (port, pod) = match late_ipam {
            Some(ipam) => {
                let port = self.host_end(call, &name).await?;
                let inside = pod_link::open_with(call.pod_netns()?, call.interface).await?;
                result = ipam::allocate(Some(ipam), call, config, &inside).await?;
                self.complete(&mut result);
                made = self.bridge(call, &result.ips, true).await?;
                let pod = self.pod_end(call, &result).await?;
                self.masquerade(call, &result).await?;
                (port, pod)
            }
            // Links and rules are independent of each other; both exist at the end.
            None => {
                // The rules come first: another thread sets them while this one configures the links.
                let links = self.connect(call, &name, &result);
                let (rules, links) = join(self.masquerade(call, &result), links).await;
                rules.and(links)?
            }
        };
        let link = pod.link.clone();
        self.announce(call, &made, &port, pod, &result).await?;
        let mut bridge = made.bridge;
        // Without a gateway's address, a bridge has the hardware address of a port.
        if !self.keys.is_gateway || self.keys.vlan != 0 || bridge.mac.iter().all(|byte| *byte == 0) {
            bridge = host.existing(&self.keys.bridge).await?;
        }
        let of_host = |link: &Link| Interface {
            name: link.name.clone(),
            mac: link.mac_text(),
            mtu: link.mtu,
            ..Interface::default()
        };
        result.interfaces = vec![of_host(&bridge), of_host(&port), call.interface_of(&link)];
        if self.keys.is_gateway && self.keys.vlan != 0 {
            result.interfaces.push(of_host(&host.existing(&self.keys.vlan_link()).await?));
        }
        result.dns = interface::dns(config, result.dns);
        Ok(result)
    }

    async fn masquerade(&self, call: &Call<'_>, result: &CniResult) -> Result<()> {
        match self.keys.ip_masq {
            true => masquerade::apply(&call.rules(), result).await,
            false => Ok(()),
        }
    }

    /// Completes the result: the interface of the addresses, gateways, a default route.
    fn complete(&self, result: &mut CniResult) {
        for ip in &mut result.ips {
            ip.interface = Some(2);
            if ip.gateway.is_none() && self.keys.is_gateway {
                ip.gateway = Some(nth(ip.address, 1));
            }
        }
        if !self.keys.is_default_gateway {
            return;
        }
        for default in ["0.0.0.0/0", "::/0"] {
            let Ok(default) = default.parse::<IpNet>() else { continue };
            let present = result.routes.iter().any(|route| route.dst == default && route.gw.is_some());
            if let (false, Some(gateway)) = (present, result.gateway(default.addr().is_ipv4())) {
                result.routes.push(Route::new(default, Some(gateway)));
            }
        }
    }

    /// Creates the bridge if necessary and adds the gateways' addresses.
    async fn bridge(&self, call: &Call<'_>, ips: &[Ip], again: bool) -> Result<ReadyBridge> {
        call.host.ready.bridge(&call.host.links, &self.keys, &self.gateways(ips)?, again).await
    }

    /// Brings the bridge into the state that an existing attachment needs.
    pub(crate) async fn stand_ready(&self, host: &crate::host::Host, result: &CniResult) -> Result<()> {
        host.ready.bridge(&host.links, &self.keys, &self.gateways(&result.ips)?, false).await.map(drop)
    }

    /// The bridge's name.
    pub(crate) fn name(&self) -> &str {
        &self.keys.bridge
    }

    fn gateways(&self, ips: &[Ip]) -> Result<BTreeSet<IpNet>> {
        let configured = ips.iter().filter(|_| self.keys.is_gateway);
        configured
            .filter_map(|ip| Some((ip.gateway?, ip.address.prefix_len())))
            .map(|(gateway, length)| {
                IpNet::new(gateway, length).map_err(|error| Error::Invalid(error.to_string()))
            })
            .collect()
    }

    /// Disconnects the pod and deletes the host's neighbour entries of its addresses.
    async fn disconnect(&self, call: &Call<'_>, previous: &CniResult) -> Result<()> {
        let gateway = match self.keys.vlan {
            0 => self.keys.bridge.clone(),
            _ => self.keys.vlan_link(),
        };
        let addresses: Vec<_> = previous.ips.iter().map(|ip| ip.address.addr()).collect();
        let host = &call.host.links;
        if must_be_removed(call) {
            detach(call).await?;
            return host.visit(move |links| links.forget_neighbours_on(&gateway, &addresses)).await;
        }
        let name = host_link(call.container, call.interface);
        host.visit(move |links| {
            links.cut_off(&name)?;
            links.forget_neighbours_on(&gateway, &addresses)
        })
        .await
    }

    /// Removes the links that all pods of the network share.
    pub(crate) async fn teardown(&self, host: &crate::host::Host) -> Result<()> {
        host.ready.forget(&self.keys.bridge).await;
        if self.keys.vlan != 0 {
            host.links.remove(&self.keys.vlan_link()).await?;
        }
        host.links.remove(&self.keys.bridge).await
    }
}

impl Commands for Bridge {
    fn read(_kind: &str, config: &Value, search: &Search) -> std::result::Result<Choice<Self>, String> {
        Self::compile(config, search).map(Choice::BuiltIn)
    }

    async fn add(&self, call: &Call<'_>, config: &Value, _previous: CniResult) -> Result<CniResult> {
        let addresses = match &self.ipam {
            Some(ipam) if ipam.needs_link() => None,
            Some(ipam) => Some(ipam.add(call, config).await?),
            None => Some(CniResult::default()),
        };
        match self.attach(call, config, addresses).await {
            Ok(result) => Ok(result),
            Err(error) => {
                let addresses = ipam::release(self.ipam.as_ref(), call, config).await;
                let link = call.host.links.remove(&host_link(call.container, call.interface)).await;
                Err(with_undo(error, [addresses, link]))
            }
        }
    }

    async fn restore(&self, call: &Call<'_>, result: &CniResult) -> Result<bool> {
        if self.keys.macspoofchk {
            let in_pod = result.of_pod().find(|(_, interface)| interface.name == call.interface);
            let mac = in_pod.map(|(_, interface)| parse_mac(&interface.mac)).transpose()?;
            spoof::allow(&call.rules(), &host_link(call.container, call.interface), &mac.unwrap_or_default())
                .await?;
        }
        self.masquerade(call, result).await?;
        Ok(self.keys.ip_masq || self.keys.macspoofchk)
    }

    async fn del(&self, call: &Call<'_>, config: &Value, previous: &CniResult) -> Result<()> {
        let over_link = self.ipam.as_ref().filter(|ipam| ipam.needs_link());
        // A lease is released over the link.
        let lease = ipam::release(over_link, call, config).await;
        let link = self.disconnect(call, previous).await;
        let masquerade =
            if self.keys.ip_masq { masquerade::remove(&call.rules(), previous).await } else { Ok(()) };
        let name = host_link(call.container, call.interface);
        let spoof =
            if self.keys.macspoofchk { spoof::remove(&call.rules(), &name, previous).await } else { Ok(()) };
        // The address is released when nothing reaches the pod through it any longer.
        lease.and(link).and(masquerade).and(spoof)?;
        ipam::release(self.ipam.as_ref().filter(|_| over_link.is_none()), call, config).await
    }

    async fn check(&self, call: &Call<'_>, config: &Value, previous: &CniResult) -> Result<()> {
        if let Some(ipam) = &self.ipam {
            ipam.check(call, config, previous).await?;
        }
        let host = &call.host.links;
        let bridge = host.existing(&self.keys.bridge).await?;
        let port = host.existing(&host_link(call.container, call.interface)).await?;
        if port.controller != Some(bridge.index) {
            let why = format!("{} is not a port of {}", port.name, bridge.name);
            return Err(Error::Invalid(format!("bridge: {why}")));
        }
        interface::check(call, previous).await.map(drop)
    }

    fn ipam(&self) -> Option<&Ipam> {
        self.ipam.as_ref()
    }

    fn routes_by(&self) -> Option<String> {
        let by = if self.keys.vlan == 0 { self.keys.bridge.clone() } else { self.keys.vlan_link() };
        self.keys.is_gateway.then_some(by)
    }
}

/// Detaches a pod from its veth. The kernel removes the pair with the pod's namespace; until then it is only
/// disconnected, which does not wait for the kernel. If the namespace is gone, or stays after the call, the pair is
/// removed.
pub(super) async fn detach(call: &Call<'_>) -> Result<()> {
    let (host, name) = (&call.host.links, host_link(call.container, call.interface));
    if must_be_removed(call) {
        return host.remove(&name).await;
    }
    host.cut_off(&name).await
}

fn must_be_removed(call: &Call<'_>) -> bool {
    call.netns.is_none() || !call.namespace_ends
}

fn config_mac(config: &Value) -> Option<String> {
    config.pointer("/args/cni/mac").and_then(Value::as_str).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use serde_json::json;

    use super::*;

    fn compile(config: Value) -> std::result::Result<Bridge, String> {
        Bridge::compile(&config, &Search::default())
    }

    #[test]
    fn keys_are_checked() {
        for (config, why) in [
            (json!({ "vlan": 4095 }), "vlan"),
            (json!({ "hairpinMode": true, "promiscMode": true }), "hairpinMode"),
            (json!({ "vlanTrunk": [{ "minID": 5 }] }), "vlanTrunk[0]"),
            (json!({ "vlanTrunk": [{ "id": 7 }, { "minID": 9, "maxID": 5 }] }), "vlanTrunk[1]"),
            (json!({ "bridge": "much-too-long-a-name" }), "bridge"),
            (
                json!({ "disableContainerInterface": true, "ipam": { "type": "host-local", "subnet": "10.0.0.0/24" } }),
                "disableContainerInterface",
            ),
        ] {
            let error = compile(config.clone()).unwrap_err();
            assert!(error.contains(why), "{config}: {error}");
        }
        let trunk =
            compile(json!({ "vlanTrunk": [{ "minID": 3, "maxID": 5, "id": 9 }] })).unwrap().keys.trunk;
        assert_eq!(trunk.into_iter().collect::<Vec<_>>(), [3, 4, 5, 9]);
    }

    #[test]
    fn the_default_gateway_is_the_first_address() {
        let bridge = compile(json!({ "isDefaultGateway": true })).unwrap();
        let ip = |address: &str| Ip { address: address.parse().unwrap(), gateway: None, interface: None };
        let mut result = CniResult { ips: vec![ip("10.0.0.7/24"), ip("fd00::7/64")], ..CniResult::default() };
        bridge.complete(&mut result);
        let gateways: Vec<IpAddr> = result.routes.iter().filter_map(|route| route.gw).collect();
        assert_eq!(gateways, ["10.0.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
    }
}
