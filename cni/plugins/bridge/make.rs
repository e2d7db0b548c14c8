//! The bridge itself: made if it is not there, and given what a configuration says of it, again and again until it is so.

use std::collections::BTreeSet;
use std::os::fd::AsFd;

use ipnet::IpNet;
use netlink_packet_route::link::InfoKind;

use super::super::interface;
use super::keys::Keys;
use crate::netlink::links::Veth;
use crate::netlink::{Link, Netlink};
use crate::{Context, Error, Result, netns};

/// A bridge that is as it should be.
#[derive(Clone, Debug)]
pub(super) struct Made {
    pub(super) bridge: Link,
    /// The link that has the gateways' addresses: the bridge, or one in the pods' VLAN.
    pub(super) gateway: Link,
}

impl Keys {
    /// The bridge with the addresses of gateways, up, on a host that passes packets on.
    pub(super) async fn make(&self, host: &Netlink, gateways: &BTreeSet<IpNet>) -> Result<Made> {
        let name = &self.bridge;
        if host.link(name).await?.is_none() {
            host.add_bridge(name, self.mtu(), self.has_vlans()).await?;
        }
        netns::set_interface_sysctls(name);
        let link = host.existing(name).await?;
        if link.kind != Some(InfoKind::Bridge) {
            return Err(Error::Invalid(format!("bridge: there is a link {name} that is no bridge")));
        }
        if !link.up || (self.promisc_mode && !link.promiscuous) {
            host.set_up(link.index, self.promisc_mode).await?;
        }
        let of_gateways = match self.vlan {
            0 => link.clone(),
            _ if gateways.is_empty() => link.clone(),
            _ => self.gateway_of_vlan(host, &link).await?,
        };
        for gateway in gateways {
            self.give_gateway(host, &of_gateways, *gateway).await?;
            interface::forward(gateway.addr().is_ipv4())?;
            interface::forward_from(&of_gateways.name, gateway.addr().is_ipv4())?;
        }
        // As it is now.
        let bridge = host.existing(name).await?;
        if gateways.iter().any(|gateway| gateway.addr().is_ipv6()) {
            let of_gateways = if of_gateways.index == bridge.index { &bridge } else { &of_gateways };
            host.keep_link_local(of_gateways.index, &of_gateways.mac).await?;
        }
        let gateway = if of_gateways.index == bridge.index { bridge.clone() } else { of_gateways };
        Ok(Made { bridge, gateway })
    }

    /// Another address of the same subnet is in the way: it goes, where the configuration says so.
    async fn give_gateway(&self, host: &Netlink, link: &Link, gateway: IpNet) -> Result<()> {
        let known = host.addresses(link.index).await?;
        if known.contains(&gateway) {
            return Ok(());
        }
        let meets = |other: &IpNet| other.contains(&gateway.addr()) || gateway.contains(&other.addr());
        let family = |other: &IpNet| other.addr().is_ipv4() == gateway.addr().is_ipv4();
        for other in known.into_iter().filter(|other| family(other)) {
            if self.force_address && (meets(&other) || other.addr().is_ipv4()) {
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

    /// A port of the bridge for the host itself, in the VLAN of the pods.
    async fn gateway_of_vlan(&self, host: &Netlink, bridge: &Link) -> Result<Link> {
        let name = self.vlan_link();
        if let Some(link) = host.link(&name).await? {
            if !link.up {
                host.set_up(link.index, false).await?;
            }
            return Ok(link);
        }
        let own =
            std::fs::File::open("/proc/thread-self/ns/net").doing("open the host's network namespace")?;
        let port = format!("bp{:013x}", interface::hash(&[&name]) >> 12);
        let veth = Veth {
            host: &port,
            pod: &name,
            netns: own.as_fd(),
            bridge: Some(bridge.index),
            mtu: self.mtu(),
            mac: None,
            up: false,
        };
        host.add_veth(&veth).await?;
        let port = host.existing(&port).await?;
        self.tag(host, &port).await?;
        host.set_up(port.index, false).await?;
        netns::set_interface_sysctls(&name);
        let link = host.existing(&name).await?;
        host.set_up(link.index, false).await?;
        Ok(link)
    }

    /// Which tags go through a port: that of the pods for what has none, and those of the trunk.
    pub(super) async fn tag(&self, host: &Netlink, port: &Link) -> Result<()> {
        /// What a new port of a bridge has (`default_pvid` of the kernel's bridge).
        const DEFAULT: u16 = 1;
        if !self.has_vlans() {
            return Ok(());
        }
        if !self.preserve_default_vlan {
            host.remove_port_vlan(port.index, DEFAULT).await?;
        }
        if self.vlan != 0 {
            host.add_port_vlan(port.index, self.vlan, true).await?;
        }
        for id in &self.trunk {
            host.add_port_vlan(port.index, *id, false).await?;
        }
        match self.vlan {
            0 => host.add_port_vlan(port.index, DEFAULT, true).await,
            _ => Ok(()),
        }
    }
}
