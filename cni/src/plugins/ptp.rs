//! The plugin `ptp`: a veth pair without a bridge. The pod sends everything to its gateway, an address of the host's
//! end. The host has a route to each of the pod's addresses.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::commands::{Choice, Commands};
use super::interface;
use super::with_undo;
use crate::call::Call;
use crate::external::Search;
use crate::ipam::Ipam;
use crate::names::host_link;
use crate::netlink::links::Veth;
use crate::nftables::masquerade;
use crate::result::{CniResult, Interface, Route};
use crate::{Error, Result, keys, netns, pod_link};

/// The plugin's keys.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PtpKeys {
    ip_masq: bool,
    mtu: u32,
}

/// A compiled configuration of `ptp`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ptp {
    keys: PtpKeys,
    pub(super) ipam: Option<Ipam>,
}

/// Returns the network that contains only this address.
fn host_net(address: IpAddr) -> Result<IpNet> {
    let length = if address.is_ipv4() { 32 } else { 128 };
    IpNet::new(address, length).map_err(|error| Error::Invalid(error.to_string()))
}

impl Ptp {
    pub(super) fn compile(config: &Value, search: &Search) -> std::result::Result<Self, String> {
        let ipam = Ipam::compile(config, search)?;
        if ipam.is_none() {
            return Err("ipam: missing".to_owned());
        }
        Ok(Self { keys: keys::parse(config)?, ipam })
    }

    fn required_ipam(&self) -> Result<&Ipam> {
        self.ipam.as_ref().ok_or_else(|| Error::Invalid("invalid ipam: missing".to_owned()))
    }

    async fn attach(&self, call: &Call<'_>, config: &Value, mut result: CniResult) -> Result<CniResult> {
        let host = &call.host.links;
        let name = host_link(call.container, call.interface);
        let mtu = Some(self.keys.mtu).filter(|mtu| *mtu != 0);
        let (pod, netns) = (call.interface, call.pod_netns()?);
        host.add_veth(&Veth { host: &name, pod, netns, bridge: None, mtu, mac: None, up: false }).await?;
        netns::set_interface_sysctls(&name);
        let host_end = host.existing(&name).await?;
        host.set_up_as(host_end.index, &call.alias()).await?;

        let inside = pod_link::open_with(netns, call.interface).await?;
        let link = inside.existing(call.interface).await?;
        for ip in &mut result.ips {
            ip.interface = Some(1);
        }
        for ip in &result.ips {
            inside.add_address(link.index, ip.address).await?;
        }
        inside.set_up(link.index, false).await?;
        self.route_through_gateway(&inside, link.index, &result).await?;
        for route in result.routes_with_gateways() {
            inside.add_route(link.index, &route, None).await?;
        }

        for ip in &result.ips {
            let gateway =
                ip.gateway.ok_or_else(|| Error::Invalid("invalid IPAM result: no gateway".to_owned()))?;
            call.host.ready.forward(gateway.is_ipv4()).await?;
            host.add_address(host_end.index, host_net(gateway)?).await?;
            // The scope of the reference plugin (`RT_SCOPE_HOST`, rtnetlink(7)).
            let route = Route { scope: Some(254), ..Route::new(host_net(ip.address.addr())?, None) };
            host.add_route(host_end.index, &route, None).await?;
        }
        if self.keys.ip_masq {
            masquerade::apply(&call.rules(), &result).await?;
        }
        let host_interface = Interface {
            name: name.clone(),
            mac: host_end.mac_text(),
            mtu: host_end.mtu,
            ..Default::default()
        };
        result.interfaces = vec![host_interface, call.interface_of(&link)];
        result.dns = interface::dns(config, result.dns);
        Ok(result)
    }

    /// Routes the pod's subnet through the gateway: no other host is on the link, and the rest of the subnet is in
    /// other pods.
    async fn route_through_gateway(
        &self,
        inside: &crate::netlink::Netlink,
        link: u32,
        result: &CniResult,
    ) -> Result<()> {
        for route in inside.routes().await? {
            let direct = route.link == Some(link) && route.gateway.is_none();
            if direct && result.ips.iter().any(|ip| ip.address.trunc() == route.to) {
                inside.remove_route(route.message).await?;
            }
        }
        for ip in &result.ips {
            let gateway =
                ip.gateway.ok_or_else(|| Error::Invalid("invalid IPAM result: no gateway".to_owned()))?;
            let source = Some(ip.address.addr());
            inside.add_route(link, &Route::new(host_net(gateway)?, None), source).await?;
            inside.add_route(link, &Route::new(ip.address.trunc(), Some(gateway)), source).await?;
        }
        Ok(())
    }
}

impl Commands for Ptp {
    fn read(_kind: &str, config: &Value, search: &Search) -> std::result::Result<Choice<Self>, String> {
        Self::compile(config, search).map(Choice::BuiltIn)
    }

    async fn add(&self, call: &Call<'_>, config: &Value, _previous: CniResult) -> Result<CniResult> {
        let addresses = self.required_ipam()?.add(call, config).await?;
        match self.attach(call, config, addresses).await {
            Ok(result) => Ok(result),
            Err(error) => {
                let link = call.host.links.remove(&host_link(call.container, call.interface)).await;
                Err(with_undo(error, [link, self.required_ipam()?.del(call, config).await]))
            }
        }
    }

    async fn del(&self, call: &Call<'_>, config: &Value, previous: &CniResult) -> Result<()> {
        let link = super::bridge::detach(call).await;
        let rules =
            if self.keys.ip_masq { masquerade::remove(&call.rules(), previous).await } else { Ok(()) };
        // The address is released when nothing reaches the pod through it any longer.
        link.and(rules)?;
        self.required_ipam()?.del(call, config).await
    }

    async fn restore(&self, call: &Call<'_>, result: &CniResult) -> Result<bool> {
        if self.keys.ip_masq {
            masquerade::apply(&call.rules(), result).await?;
        }
        Ok(self.keys.ip_masq)
    }

    async fn check(&self, call: &Call<'_>, config: &Value, previous: &CniResult) -> Result<()> {
        self.required_ipam()?.check(call, config, previous).await?;
        call.host.links.existing(&host_link(call.container, call.interface)).await?;
        interface::check(call, previous).await.map(drop)
    }

    fn ipam(&self) -> Option<&Ipam> {
        self.ipam.as_ref()
    }

    fn routes_by(&self) -> Option<String> {
        // Each pod has a separate link with such a name.
        Some(host_link("0000000000000", "eth0"))
    }
}
