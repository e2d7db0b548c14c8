//! Functions that the plugins which create an interface in a pod share.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use serde::Deserialize;
use serde_json::Value;

use crate::call::Call;
use crate::netlink::Link;
use crate::pod_link::{self, Configured};
use crate::result::{CniResult, Dns};
use crate::{Error, Result};

/// Like [`pod_link::configure`], but fails if another host in the network has one of the addresses.
pub(crate) async fn configure_detecting(
    netns: BorrowedFd<'_>,
    interface: &str,
    result: &CniResult,
) -> Result<Configured> {
    let (inside, changes) = pod_link::open_detecting(netns, interface).await?;
    let link = inside.existing(interface).await?;
    for ip in &result.ips {
        inside.add_tentative_address(link.index, ip.address).await?;
    }
    inside.set_up(link.index, false).await?;
    inside.wait_for_addresses(link.index, &changes).await?;
    for route in result.routes_with_gateways() {
        inside.add_route(link.index, &route, None).await?;
    }
    Ok(Configured { link, inside })
}

/// Returns the DNS configuration of the network if it is set, otherwise that of the addresses.
pub(crate) fn dns(config: &Value, of_addresses: Dns) -> Dns {
    let configured = config.get("dns").and_then(|dns| Dns::deserialize(berth_json::NullIsAbsent(dns)).ok());
    configured.filter(|dns| *dns != Dns::default()).unwrap_or(of_addresses)
}

/// Removes the pod's interface, if it exists.
pub(crate) async fn remove(call: &Call<'_>) -> Result<()> {
    let Some(netns) = call.netns else { return Ok(()) };
    pod_link::open(netns).await?.remove(call.interface).await
}

/// Brings the pod's interface down, if it exists.
pub(crate) async fn down(call: &Call<'_>) -> Result<()> {
    let Some(netns) = call.netns else { return Ok(()) };
    let inside = pod_link::open(netns).await?;
    match inside.link(call.interface).await? {
        Some(link) => inside.change(link.index, "set the state", |link| link.down()).await,
        None => Ok(()),
    }
}

/// Checks that the pod's interface is in the state of its result.
pub(crate) async fn check(call: &Call<'_>, previous: &CniResult) -> Result<Link> {
    let inside = call.inside().await?;
    let gone = || Error::Invalid(format!("interface {} not found", call.interface));
    let link = inside.link(call.interface).await?.ok_or_else(gone)?;
    let of_pod: Vec<_> = previous.of_pod().collect();
    let recorded = of_pod.iter().find(|(_, interface)| interface.name == call.interface);
    let Some((place, recorded)) = recorded else {
        return Err(Error::Invalid(format!("interface {} is not in the result", call.interface)));
    };
    if !recorded.mac.is_empty() && recorded.mac != link.mac_text() {
        let actual = link.mac_text();
        return Err(Error::Invalid(format!(
            "interface {} has the address {actual}, not {}",
            call.interface, recorded.mac
        )));
    }
    let addresses = inside.addresses(link.index).await?;
    let own = previous.ips.iter().filter(|ip| ip.interface.is_none_or(|interface| interface == *place));
    for ip in own {
        if !addresses.contains(&ip.address) {
            return Err(Error::Invalid(format!(
                "interface {} does not have the address {}",
                call.interface, ip.address
            )));
        }
    }
    let routes = inside.routes().await?;
    for route in &previous.routes {
        let gateway: Option<IpAddr> = route.gw.or_else(|| previous.gateway(route.dst.addr().is_ipv4()));
        let matches = |installed: &crate::netlink::routes::InstalledRoute| {
            installed.to == route.dst.trunc() && (installed.gateway == gateway || route.gw.is_none())
        };
        if !routes.iter().any(matches) {
            return Err(Error::Invalid(format!(
                "interface {}: route to {} not found",
                call.interface, route.dst
            )));
        }
    }
    Ok(link)
}
