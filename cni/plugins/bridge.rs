//! `bridge`: a veth pair whose host end is a port of a bridge.

use std::collections::BTreeSet;

use futures_util::future::{join, try_join};
use ipnet::IpNet;
use netlink_packet_route::link::InfoKind;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Mutex;

use super::interface::{self, host_link};
use super::with_undo;
use crate::call::{Call, first_mac, parse_mac};
use crate::conflist::{Search, is_link_name};
use crate::ipam::host_local::nth;
use crate::ipam::{self, Ipam};
use crate::netlink::Link;
use crate::netlink::links::Veth;
use crate::nftables::{masquerade, spoof};
use crate::result::{CniResult, Interface, Ip, Route};
use crate::{Error, Result, netns};

/// The highest tag of a VLAN (IEEE 802.1Q).
const HIGHEST_VLAN: u16 = 4094;

/// The plugin's keys.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Keys {
    bridge: String,
    is_gateway: bool,
    is_default_gateway: bool,
    force_address: bool,
    ip_masq: bool,
    mtu: u32,
    hairpin_mode: bool,
    promisc_mode: bool,
    vlan: u16,
    vlan_trunk: Vec<Trunk>,
    preserve_default_vlan: bool,
    macspoofchk: bool,
    #[serde(rename = "enabledad")]
    enable_dad: bool,
    disable_container_interface: bool,
    port_isolation: bool,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            bridge: "cni0".to_owned(),
            is_gateway: false,
            is_default_gateway: false,
            force_address: false,
            ip_masq: false,
            mtu: 0,
            hairpin_mode: false,
            promisc_mode: false,
            vlan: 0,
            vlan_trunk: Vec::new(),
            preserve_default_vlan: false,
            macspoofchk: false,
            enable_dad: false,
            disable_container_interface: false,
            port_isolation: false,
        }
    }
}

/// Tags that a port lets through: one, or all from one to another.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Trunk {
    id: Option<u16>,
    #[serde(rename = "minID")]
    min_id: Option<u16>,
    #[serde(rename = "maxID")]
    max_id: Option<u16>,
}

/// The plugin.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Bridge {
    keys: Keys,
    trunk: BTreeSet<u16>,
    pub(super) ipam: Option<Ipam>,
}

/// What has been made ready on the host: a bridge is looked at again when a pod cannot be attached to it.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    bridge: Mutex<Option<ReadyBridge>>,
}

#[derive(Clone, Debug)]
struct ReadyBridge {
    keys: Keys,
    link: Link,
    gateways: BTreeSet<IpNet>,
}

impl Bridge {
    pub(super) fn compile(config: &Value, search: &Search) -> std::result::Result<Self, String> {
        let mut keys: Keys = ipam::keys(config)?;
        keys.is_gateway |= keys.is_default_gateway;
        if !is_link_name(&keys.bridge) {
            return Err(format!("bridge: {:?} is no name of a link", keys.bridge));
        }
        if keys.vlan > HIGHEST_VLAN {
            return Err(format!("vlan: {} is more than {HIGHEST_VLAN}", keys.vlan));
        }
        if keys.hairpin_mode && keys.promisc_mode {
            return Err("hairpinMode: cannot be with promiscMode".to_owned());
        }
        let ipam = Ipam::compile(config, search)?;
        if ipam.is_some() && keys.disable_container_interface {
            return Err("disableContainerInterface: cannot be with ipam".to_owned());
        }
        Ok(Self { trunk: trunk(&keys.vlan_trunk)?, keys, ipam })
    }

    fn has_vlans(&self) -> bool {
        self.keys.vlan != 0 || !self.trunk.is_empty()
    }

    fn mtu(&self) -> Option<u32> {
        Some(self.keys.mtu).filter(|mtu| *mtu != 0)
    }

    pub(super) async fn add(&self, call: &Call<'_>, config: &Value) -> Result<CniResult> {
        let found = match &self.ipam {
            Some(ipam) if ipam.needs_link() => None,
            Some(ipam) => Some(ipam.add(call, config).await?),
            None => Some(CniResult::default()),
        };
        match self.attach(call, config, found).await {
            Ok(result) => Ok(result),
            Err(error) => {
                let addresses = ipam::give_back(self.ipam.as_ref(), call, config).await;
                let link = call.host.links.remove(&host_link(call.container, call.interface)).await;
                Err(with_undo(error, [addresses, link]))
            }
        }
    }

    /// Without addresses that were found before, they are asked for over the new link.
    async fn attach(&self, call: &Call<'_>, config: &Value, found: Option<CniResult>) -> Result<CniResult> {
        let host = &call.host.links;
        let name = host_link(call.container, call.interface);
        let ask = self.ipam.as_ref().filter(|_| found.is_none());
        let mut result = found.unwrap_or_default();
        self.complete(&mut result);
        let mut bridge = self.make_pair(call, &name, &config_mac(config), &result).await?;
        let (port, link) = match ask {
            Some(ipam) => {
                let port = self.near_end(call, &name).await?;
                let inside = netns::open_with(call.pod_netns()?, call.interface).await?;
                result = ipam::take(Some(ipam), call, config, &inside).await?;
                self.complete(&mut result);
                bridge = self.bridge(call, &result.ips, true).await?;
                let link = self.far_end(call, &result).await?;
                self.masquerade(call, &result).await?;
                (port, link)
            }
            // Links and rules do not need each other: at the end there are both.
            None => {
                let links = self.connect(call, &name, &result);
                let (links, rules) = join(links, self.masquerade(call, &result)).await;
                rules.and(links)?
            }
        };
        // One without a gateway's address has the hardware address of a port.
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
            result.interfaces.push(of_host(&host.existing(&self.vlan_link()).await?));
        }
        result.dns = interface::dns(config, result.dns);
        Ok(result)
    }

    /// Connects a pod whose addresses are known: the links of the host and of the pod, the host's up at the end of this. What
    /// guards the pod's network is there before the pod may send.
    async fn connect(&self, call: &Call<'_>, name: &str, result: &CniResult) -> Result<(Link, Link)> {
        let (near, far) = (self.near_end(call, name), self.far_end(call, result));
        match self.is_guarded() {
            true => {
                let near = near.await?;
                Ok((near, far.await?))
            }
            false => try_join(near, far).await,
        }
    }

    fn is_guarded(&self) -> bool {
        self.keys.macspoofchk || self.keys.port_isolation || self.has_vlans()
    }

    async fn near_end(&self, call: &Call<'_>, name: &str) -> Result<Link> {
        let host = &call.host.links;
        netns::set_interface_sysctls(name);
        let port = host.existing(name).await?;
        host.set_port(port.index, self.keys.hairpin_mode, self.keys.port_isolation).await?;
        self.tag(call, &port).await?;
        if self.keys.macspoofchk {
            let far = netns::link(call.pod_netns()?, call.interface).await?;
            spoof::allow(call, name, &far.mac).await?;
        }
        host.set_up_as(port.index, &call.alias()).await?;
        Ok(port)
    }

    async fn far_end(&self, call: &Call<'_>, result: &CniResult) -> Result<Link> {
        let (netns, interface) = (call.pod_netns()?, call.interface);
        match (self.keys.disable_container_interface, self.keys.enable_dad) {
            (true, _) => netns::link(netns, interface).await,
            (false, true) => interface::configure_detecting(netns, interface, result).await,
            (false, false) => netns::configure(netns, interface, result).await,
        }
    }

    async fn masquerade(&self, call: &Call<'_>, result: &CniResult) -> Result<()> {
        match self.keys.ip_masq {
            true => masquerade::apply(call, result).await,
            false => Ok(()),
        }
    }

    pub(super) async fn restore(&self, call: &Call<'_>, result: &CniResult) -> Result<bool> {
        if self.keys.macspoofchk {
            let own = result.of_pod().find(|(_, interface)| interface.name == call.interface);
            let mac = own.map(|(_, interface)| parse_mac(&interface.mac)).transpose()?;
            spoof::allow(call, &host_link(call.container, call.interface), &mac.unwrap_or_default()).await?;
        }
        self.masquerade(call, result).await?;
        Ok(self.keys.ip_masq || self.keys.macspoofchk)
    }

    /// What the bridge adds to the addresses: whose they are, gateways, a default route.
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
            let known = result.routes.iter().any(|route| route.dst == default && route.gw.is_some());
            if let (false, Some(gateway)) = (known, result.gateway(default.addr().is_ipv4())) {
                result.routes.push(Route::new(default, Some(gateway)));
            }
        }
    }

    /// The bridge, with a new veth pair whose one end is a port of it.
    async fn make_pair(
        &self,
        call: &Call<'_>,
        name: &str,
        mac: &Option<String>,
        result: &CniResult,
    ) -> Result<Link> {
        let host = &call.host.links;
        let asked = [call.runtime.mac.as_deref(), mac.as_deref(), call.argument_mac()];
        let mac = first_mac(asked)?;
        let mut bridge = self.bridge(call, &result.ips, false).await?;
        let veth = |bridge: &Link| {
            let (pod, netns) = (call.interface, call.pod_netns()?);
            Ok::<_, Error>(Veth {
                host: name,
                pod,
                netns,
                bridge: Some(bridge.index),
                mtu: self.mtu(),
                mac: mac.as_deref(),
                up: !self.is_guarded(),
            })
        };
        if host.add_veth(&veth(&bridge)?).await.is_err() {
            // Somebody may have removed the bridge since it was last looked at.
            bridge = self.bridge(call, &result.ips, true).await?;
            host.remove(name).await?;
            host.add_veth(&veth(&bridge)?).await?;
        }
        Ok(bridge)
    }

    /// The bridge, made if it is not there, with the gateways' addresses.
    async fn bridge(&self, call: &Call<'_>, ips: &[Ip], again: bool) -> Result<Link> {
        let host = &call.host.links;
        let gateways = self.gateways(ips)?;
        let mut ready = call.host.ready.bridge.lock().await;
        if let Some(known) = &*ready
            && !again
            && known.keys == self.keys
            && known.gateways.is_superset(&gateways)
        {
            return Ok(known.link.clone());
        }
        let name = &self.keys.bridge;
        if host.link(name).await?.is_none() {
            host.add_bridge(name, self.mtu(), self.has_vlans()).await?;
        }
        netns::set_interface_sysctls(name);
        let link = host.existing(name).await?;
        if link.kind != Some(InfoKind::Bridge) {
            return Err(Error::Invalid(format!("bridge: there is a link {name} that is no bridge")));
        }
        host.set_up(link.index, self.keys.promisc_mode).await?;
        let with_address = match self.keys.vlan {
            0 => link.clone(),
            _ if gateways.is_empty() => link.clone(),
            _ => self.gateway_of_vlan(call, &link).await?,
        };
        for gateway in &gateways {
            self.give_gateway(call, &with_address, *gateway).await?;
            interface::forward(gateway.addr().is_ipv4())?;
        }
        let all = ready.take().filter(|known| known.keys == self.keys).map(|known| known.gateways);
        let all = all.into_iter().flatten().chain(gateways).collect();
        *ready = Some(ReadyBridge { keys: self.keys.clone(), link: link.clone(), gateways: all });
        Ok(link)
    }

    fn gateways(&self, ips: &[Ip]) -> Result<BTreeSet<IpNet>> {
        let wanted = ips.iter().filter(|_| self.keys.is_gateway);
        wanted
            .filter_map(|ip| Some((ip.gateway?, ip.address.prefix_len())))
            .map(|(gateway, length)| {
                IpNet::new(gateway, length).map_err(|error| Error::Invalid(error.to_string()))
            })
            .collect()
    }

    /// Another address of the same subnet is in the way: it goes, where the configuration says so.
    async fn give_gateway(&self, call: &Call<'_>, link: &Link, gateway: IpNet) -> Result<()> {
        let host = &call.host.links;
        let known = host.addresses(link.index).await?;
        if known.contains(&gateway) {
            return Ok(());
        }
        let meets = |other: &IpNet| other.contains(&gateway.addr()) || gateway.contains(&other.addr());
        let family = |other: &IpNet| other.addr().is_ipv4() == gateway.addr().is_ipv4();
        for other in known.into_iter().filter(|other| family(other)) {
            if self.keys.force_address && (meets(&other) || other.addr().is_ipv4()) {
                host.remove_address(link.index, other).await?;
            } else if meets(&other) {
                let why = format!("{} has the address {other}, not {gateway}", link.name);
                return Err(Error::Invalid(format!("forceAddress: is not set, and {why}")));
            }
        }
        host.add_address(link.index, gateway).await?;
        // Else a bridge has the lowest of its ports', which change.
        let mac = link.mac.clone();
        host.change(link.index, "set the hardware address", |link| link.address(mac)).await
    }

    fn vlan_link(&self) -> String {
        format!("{}.{}", self.keys.bridge, self.keys.vlan)
    }

    /// A port of the bridge for the host itself, in the VLAN of the pods.
    async fn gateway_of_vlan(&self, call: &Call<'_>, bridge: &Link) -> Result<Link> {
        let (host, name) = (&call.host.links, self.vlan_link());
        if let Some(link) = host.link(&name).await? {
            return Ok(link);
        }
        let own = std::fs::File::open("/proc/thread-self/ns/net")
            .map_err(|source| Error::Io { action: "open the host's network namespace".to_owned(), source })?;
        let port = format!("bp{:013x}", interface::hash(&[&name]) >> 12);
        let netns = std::os::fd::AsFd::as_fd(&own);
        let veth = Veth {
            host: &port,
            pod: &name,
            netns,
            bridge: Some(bridge.index),
            mtu: self.mtu(),
            mac: None,
            up: false,
        };
        host.add_veth(&veth).await?;
        let port = host.existing(&port).await?;
        self.tag(call, &port).await?;
        host.set_up(port.index, false).await?;
        netns::set_interface_sysctls(&name);
        let link = host.existing(&name).await?;
        host.set_up(link.index, false).await?;
        Ok(link)
    }

    /// Which tags go through a port: that of the pods for what has none, and those of the trunk.
    async fn tag(&self, call: &Call<'_>, port: &Link) -> Result<()> {
        /// What a new port of a bridge has (`default_pvid` of the kernel's bridge).
        const DEFAULT: u16 = 1;
        if !self.has_vlans() {
            return Ok(());
        }
        let host = &call.host.links;
        if !self.keys.preserve_default_vlan {
            host.remove_port_vlan(port.index, DEFAULT).await?;
        }
        if self.keys.vlan != 0 {
            host.add_port_vlan(port.index, self.keys.vlan, true).await?;
        }
        for id in &self.trunk {
            host.add_port_vlan(port.index, *id, false).await?;
        }
        match self.keys.vlan {
            0 => host.add_port_vlan(port.index, DEFAULT, true).await,
            _ => Ok(()),
        }
    }

    pub(super) async fn del(&self, call: &Call<'_>, config: &Value) -> Result<()> {
        let asked = self.ipam.as_ref().filter(|ipam| ipam.needs_link());
        // Whoever has lent it is told over the link.
        let told = ipam::give_back(asked, call, config).await;
        let link = detach(call).await;
        let masquerade = if self.keys.ip_masq { masquerade::forget(call).await } else { Ok(()) };
        let spoof = if self.keys.macspoofchk { spoof::forget(call).await } else { Ok(()) };
        // The address is free when nothing reaches the pod by it any more.
        told.and(link).and(masquerade).and(spoof)?;
        ipam::give_back(self.ipam.as_ref().filter(|_| asked.is_none()), call, config).await
    }

    pub(super) async fn check(&self, call: &Call<'_>, config: &Value, previous: &CniResult) -> Result<()> {
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

    /// Takes away what is there for all pods of the network.
    pub(crate) async fn teardown(&self, host: &crate::host::Host) -> Result<()> {
        *host.ready.bridge.lock().await = None;
        if self.keys.vlan != 0 {
            host.links.remove(&self.vlan_link()).await?;
        }
        host.links.remove(&self.keys.bridge).await
    }
}

/// Detaches a pod from its veth. The pair dies with the pod's namespace; here it is only cut off, which does not wait
/// for the kernel. One whose namespace is gone and that is still there is removed, and so is one that a runtime is to
/// find gone while the namespace stays.
pub(super) async fn detach(call: &Call<'_>) -> Result<()> {
    let (host, name) = (&call.host.links, host_link(call.container, call.interface));
    if call.netns.is_none() || !call.namespace_ends {
        return host.remove(&name).await;
    }
    match host.link(&name).await? {
        Some(link) => host.cut_off(link.index).await,
        None => Ok(()),
    }
}

fn config_mac(config: &Value) -> Option<String> {
    config.pointer("/args/cni/mac").and_then(Value::as_str).map(str::to_owned)
}

fn trunk(parts: &[Trunk]) -> std::result::Result<BTreeSet<u16>, String> {
    let sound = |id: u16| (1..=HIGHEST_VLAN).contains(&id);
    let mut all = BTreeSet::new();
    for (place, part) in parts.iter().enumerate() {
        match (part.min_id, part.max_id) {
            (Some(first), Some(last)) if sound(first) && sound(last) && first <= last => {
                all.extend(first..=last);
            }
            (None, None) => {}
            _ => return Err(format!("vlanTrunk[{place}]: minID and maxID are no range of VLANs")),
        }
        match part.id {
            Some(id) if !sound(id) => return Err(format!("vlanTrunk[{place}].id: {id} is no VLAN")),
            id => all.extend(id),
        }
    }
    Ok(all)
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
        let trunk = compile(json!({ "vlanTrunk": [{ "minID": 3, "maxID": 5, "id": 9 }] })).unwrap().trunk;
        assert_eq!(trunk.into_iter().collect::<Vec<_>>(), [3, 4, 5, 9]);
    }

    #[test]
    fn a_gateway_is_the_first_address_unless_it_is_said() {
        let bridge = compile(json!({ "isDefaultGateway": true })).unwrap();
        let ip = |address: &str| Ip { address: address.parse().unwrap(), gateway: None, interface: None };
        let mut result = CniResult { ips: vec![ip("10.0.0.7/24"), ip("fd00::7/64")], ..CniResult::default() };
        bridge.complete(&mut result);
        let gateways: Vec<IpAddr> = result.routes.iter().filter_map(|route| route.gw).collect();
        assert_eq!(gateways, ["10.0.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
    }
}
