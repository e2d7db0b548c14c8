//! The bridge itself: created if it does not exist, and brought into the configured state. The operation is idempotent.

use std::collections::BTreeSet;
use std::os::fd::AsFd;

use ipnet::IpNet;
use netlink_packet_route::link::InfoKind;

use super::keys::Keys;
use crate::netlink::links::Veth;
use crate::netlink::{Link, Netlink};
use crate::{Context, Error, Result, forwarding, names, netns};

/// A bridge in the configured state.
#[derive(Clone, Debug)]
pub(crate) struct ReadyBridge {
    pub(crate) bridge: Link,
    /// The link with the gateways' addresses: the bridge, or a link in the pods' VLAN.
    pub(crate) gateway: Link,
}

impl Keys {
    /// Creates the bridge if necessary, adds the gateways' addresses, brings it up and enables forwarding on the host.
    pub(crate) async fn make(&self, host: &Netlink, gateways: &BTreeSet<IpNet>) -> Result<ReadyBridge> {
        let name = &self.bridge;
        if host.link(name).await?.is_none() {
            host.add_bridge(name, self.mtu(), self.has_vlans()).await?;
        }
        netns::set_interface_sysctls(name);
        let link = host.existing(name).await?;
        if link.kind != Some(InfoKind::Bridge) {
            return Err(Error::Invalid(format!(
                "invalid bridge {name}: the link exists and is not a bridge"
            )));
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
            self.add_gateway_address(host, &of_gateways, *gateway).await?;
            forwarding::enable(gateway.addr().is_ipv4())?;
            forwarding::enable_from(&of_gateways.name, gateway.addr().is_ipv4())?;
        }
        // Read its current state.
        let bridge = host.existing(name).await?;
        if gateways.iter().any(|gateway| gateway.addr().is_ipv6()) {
            let of_gateways = if of_gateways.index == bridge.index { &bridge } else { &of_gateways };
            host.keep_link_local(of_gateways.index, &of_gateways.mac).await?;
        }
        let gateway = if of_gateways.index == bridge.index { bridge.clone() } else { of_gateways };
        Ok(ReadyBridge { bridge, gateway })
    }

    /// Adds a gateway's address. If the link has another address of the same subnet, `forceAddress` decides between its
    /// removal and an error; `forceAddress` also removes all other IPv4 addresses.
    async fn add_gateway_address(&self, host: &Netlink, link: &Link, gateway: IpNet) -> Result<()> {
        let existing = host.addresses(link.index).await?;
        if existing.contains(&gateway) {
            return Ok(());
        }
        let overlaps = |other: &IpNet| other.contains(&gateway.addr()) || gateway.contains(&other.addr());
        let same_family = |other: &IpNet| other.addr().is_ipv4() == gateway.addr().is_ipv4();
        for other in existing.into_iter().filter(|other| same_family(other)) {
            if self.force_address && (overlaps(&other) || other.addr().is_ipv4()) {
                host.remove_address(link.index, other).await?;
            } else if overlaps(&other) {
                let why = format!("{} has the address {other}, not {gateway}", link.name);
                return Err(Error::Invalid(format!(
                    "invalid gateway: {why}; set forceAddress to replace it"
                )));
            }
        }
        host.add_address(link.index, gateway).await?;
        // Without a fixed address, a bridge has the lowest one of its ports, which changes.
        let mac = link.mac.clone();
        host.change(link.index, "set the hardware address", |link| link.address(mac)).await
    }

    /// Creates a port of the bridge for the host itself, in the pods' VLAN.
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
        let port = format!("bp{:013x}", names::hash(&[&name]) >> 12);
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
        self.set_vlans(host, &port).await?;
        host.set_up(port.index, false).await?;
        netns::set_interface_sysctls(&name);
        let link = host.existing(&name).await?;
        host.set_up(link.index, false).await?;
        Ok(link)
    }

    /// Sets the VLANs of a port: that of the pods for untagged packets, and those of the trunk.
    pub(crate) async fn set_vlans(&self, host: &Netlink, port: &Link) -> Result<()> {
        /// The VLAN of a new bridge port (`default_pvid` of the kernel's bridge).
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
