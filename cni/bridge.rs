//! The bridge plugin: a veth pair whose host end is a port of a bridge, with addresses of host-local.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use ipnet::IpNet;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::conflist::Bridge;
use crate::ipam::{Lease, Store};
use crate::netlink::{Link, Netlink};
use crate::{Context, Error, Result, masquerade, netns};

/// The bridge of a configuration that names none.
const DEFAULT_NAME: &str = "cni0";

/// What has been made ready on the host: a bridge is looked at again when a pod cannot be attached to it.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    bridge: Mutex<Option<(String, Link)>>,
}

/// One attachment to a bridge.
#[derive(Debug)]
pub(crate) struct Port<'a> {
    pub(crate) network: &'a str,
    pub(crate) config: &'a Bridge,
    pub(crate) host: &'a Netlink,
    pub(crate) addresses: &'a Store,
    pub(crate) ready: &'a Ready,
    pub(crate) pod: &'a str,
    pub(crate) interface: &'a str,
}

/// The host's end of a pod's veth: a link's name has at most 15 characters (IFNAMSIZ).
pub(crate) fn host_link(pod: &str) -> String {
    format!("bv{}", pod.get(..13).unwrap_or(pod))
}

impl Port<'_> {
    fn bridge_name(&self) -> &str {
        self.config.name.as_deref().unwrap_or(DEFAULT_NAME)
    }

    fn mtu(&self) -> Option<u32> {
        Some(self.config.mtu).filter(|mtu| *mtu != 0)
    }

    /// Attaches a pod: the CNI result. What was made before an error is taken back.
    pub(crate) async fn add(&self, pod_netns: BorrowedFd<'_>) -> Result<Value> {
        let leases = self.allocate().await?;
        match self.attach(pod_netns, &leases).await {
            Ok(result) => Ok(result),
            Err(error) => {
                let undone = [self.host.remove(&host_link(self.pod)).await, self.addresses.release(self.pod)];
                let errors: Vec<Error> = undone.into_iter().filter_map(Result::err).collect();
                if errors.is_empty() {
                    return Err(error);
                }
                Err(Error::Several([error].into_iter().chain(errors).collect()))
            }
        }
    }

    /// Addresses are on disk before they are used.
    async fn allocate(&self) -> Result<Vec<Lease>> {
        let (store, ipam) = (self.addresses.clone(), self.config.ipam.clone());
        let (pod, interface) = (self.pod.to_owned(), self.interface.to_owned());
        let allocated = tokio::task::spawn_blocking(move || store.allocate(&ipam, &pod, &interface)).await;
        allocated.map_err(std::io::Error::other).doing("allocate addresses")?
    }

    async fn attach(&self, pod_netns: BorrowedFd<'_>, leases: &[Lease]) -> Result<Value> {
        let name = host_link(self.pod);
        let mut bridge = self.bridge(false).await?;
        let veth = self.host.add_veth(&name, self.interface, pod_netns, bridge.index, self.mtu()).await;
        if veth.is_err() {
            // Somebody may have removed the bridge since it was last looked at.
            bridge = self.bridge(true).await?;
            self.host.remove(&name).await?;
            self.host.add_veth(&name, self.interface, pod_netns, bridge.index, self.mtu()).await?;
        }
        netns::set_interface_sysctls(&name);
        let port = self.host.existing(&name).await?;
        if self.config.hairpin_mode {
            self.host.set_hairpin(port.index).await?;
        }
        self.host.set_up(port.index, false).await?;

        let inside = netns::open(pod_netns, self.interface).await?;
        let link = inside.existing(self.interface).await?;
        for lease in leases {
            inside.add_address(link.index, lease.address).await?;
        }
        inside.set_up(link.index, false).await?;
        let routes = self.routes(leases);
        for (to, gateway) in &routes {
            inside.add_route(link.index, *to, *gateway).await?;
        }
        Ok(self.result(&bridge, &port, &link, leases, &routes))
    }

    /// The bridge, made if it is not there, with the gateways' addresses.
    async fn bridge(&self, again: bool) -> Result<Link> {
        let mut ready = self.ready.bridge.lock().await;
        if let Some((name, link)) = &*ready
            && !again
            && name == self.bridge_name()
        {
            return Ok(link.clone());
        }
        let name = self.bridge_name();
        if self.host.link(name).await?.is_none() {
            self.host.add_bridge(name, self.mtu()).await?;
        }
        netns::set_interface_sysctls(name);
        let link = self.host.existing(name).await?;
        if self.config.is_gateway || self.config.is_default_gateway {
            for range in self.config.ipam.ranges.iter().filter_map(|set| set.first()) {
                let address = IpNet::new(range.gateway(), range.subnet.prefix_len());
                let address = address.map_err(|error| Error::Invalid(error.to_string()))?;
                self.host.add_address(link.index, address).await?;
                forward(address.addr())?;
            }
        }
        self.host.set_up(link.index, self.config.promisc_mode).await?;
        if self.config.ip_masq {
            let subnets: Vec<IpNet> =
                self.config.ipam.ranges.iter().flatten().map(|range| range.subnet.trunc()).collect();
            let network = self.network.to_owned();
            masquerade::blocking(move || masquerade::apply(&network, &subnets)).await?;
        }
        *ready = Some((name.to_owned(), link.clone()));
        Ok(link)
    }

    /// Routes of the pod: those of the configuration, by the gateway of their family, and a default route where the
    /// bridge is to be the default gateway.
    fn routes(&self, leases: &[Lease]) -> Vec<(IpNet, Option<IpAddr>)> {
        let gateway = |to: &IpNet| {
            leases.iter().map(|lease| lease.gateway).find(|gateway| gateway.is_ipv4() == to.addr().is_ipv4())
        };
        let mut routes: Vec<(IpNet, Option<IpAddr>)> = Vec::new();
        for route in &self.config.ipam.routes {
            // A route of a family that the pod has no address of leads nowhere.
            if let Some(gateway) = route.gw.or_else(|| gateway(&route.dst)) {
                routes.push((route.dst, Some(gateway)));
            }
        }
        if self.config.is_default_gateway {
            for text in ["0.0.0.0/0", "::/0"] {
                let Ok(default) = text.parse::<IpNet>() else { continue };
                let known = routes.iter().any(|(to, _)| *to == default);
                if let (false, Some(gateway)) = (known, gateway(&default)) {
                    routes.push((default, Some(gateway)));
                }
            }
        }
        routes
    }

    fn result(
        &self,
        bridge: &Link,
        port: &Link,
        link: &Link,
        leases: &[Lease],
        routes: &[(IpNet, Option<IpAddr>)],
    ) -> Value {
        let ips = leases
            .iter()
            .map(|lease| json!({ "address": lease.address, "gateway": lease.gateway, "interface": 2 }));
        let routes = routes.iter().map(|(to, gateway)| json!({ "dst": to, "gw": gateway }));
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                { "name": self.bridge_name(), "mac": bridge.mac, "mtu": bridge.mtu },
                { "name": host_link(self.pod), "mac": port.mac, "mtu": port.mtu },
                { "name": self.interface, "mac": link.mac, "mtu": link.mtu },
            ],
            "ips": ips.collect::<Vec<_>>(),
            "routes": routes.collect::<Vec<_>>(),
            "dns": {},
        })
    }

    /// Detaches a pod. The veth dies with the pod's namespace; here it is only cut off, which does not wait for the
    /// kernel. One whose namespace is gone and that is still there is removed.
    pub(crate) async fn del(&self, netns_lives: bool) -> Result<()> {
        let name = host_link(self.pod);
        if netns_lives {
            if let Some(link) = self.host.link(&name).await? {
                self.host.cut_off(link.index).await?;
            }
        } else {
            self.host.remove(&name).await?;
        }
        // The address is free when nothing reaches the pod by it any more.
        self.addresses.release(self.pod)
    }

    /// Takes away what is there for all pods of the network.
    pub(crate) async fn teardown(&self) -> Result<()> {
        *self.ready.bridge.lock().await = None;
        let network = self.network.to_owned();
        let rules = masquerade::blocking(move || masquerade::remove(&network)).await;
        let bridge = self.host.remove(self.bridge_name()).await;
        rules.and(bridge)
    }
}

/// The host passes packets on between its links, as the reference plugin has it for a gateway.
fn forward(gateway: IpAddr) -> Result<()> {
    let file = match gateway {
        IpAddr::V4(_) => "/proc/sys/net/ipv4/ip_forward",
        IpAddr::V6(_) => "/proc/sys/net/ipv6/conf/all/forwarding",
    };
    std::fs::write(file, "1").doing(format!("write {file}"))
}
