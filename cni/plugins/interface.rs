//! Functions that the plugins which create an interface in a pod share.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use serde::Deserialize;
use serde_json::Value;

use crate::call::Call;
use crate::netlink::Link;
use crate::netns::Configured;
use crate::result::{CniResult, Dns};
use crate::{Error, Result, netns};

/// Like [`netns::configure`], but fails if another host in the network has one of the addresses.
pub(crate) async fn configure_detecting(
    netns: BorrowedFd<'_>,
    interface: &str,
    result: &CniResult,
) -> Result<Configured> {
    let (inside, changes) = netns::open_detecting(netns, interface).await?;
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

/// The prefix of the names of the host ends of pods' veth pairs.
pub(crate) const HOST_LINK_PREFIX: &str = "bv";

/// The name of the host's end of a pod's veth. A link's name has at most 15 characters (IFNAMSIZ): the name for a pod's
/// first interface contains the beginning of the pod's id.
pub(crate) fn host_link(container: &str, interface: &str) -> String {
    match interface {
        "eth0" if container.len() >= 13 && container.is_char_boundary(13) => {
            format!("{HOST_LINK_PREFIX}{}", container.get(..13).unwrap_or(container))
        }
        _ => format!("{HOST_LINK_PREFIX}{:013x}", hash(&[container, interface]) >> 12),
    }
}

/// FNV-1a. Unlike the standard library's hash it never changes.
pub(crate) fn hash(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Returns the DNS configuration of the network if it is set, otherwise that of the addresses.
pub(crate) fn dns(config: &Value, of_addresses: Dns) -> Dns {
    let configured = config.get("dns").and_then(|dns| Dns::deserialize(berth_json::NullIsAbsent(dns)).ok());
    configured.filter(|dns| *dns != Dns::default()).unwrap_or(of_addresses)
}

/// Enables forwarding on the host (ip-sysctl, `ip_forward`).
pub(crate) fn forward(v4: bool) -> Result<()> {
    switch_on(match v4 {
        true => "/proc/sys/net/ipv4/ip_forward",
        false => "/proc/sys/net/ipv6/conf/all/forwarding",
    })
}

/// Enables forwarding of packets from one link, in case it was disabled for that link.
pub(crate) fn forward_from(link: &str, v4: bool) -> Result<()> {
    let family = if v4 { "ipv4" } else { "ipv6" };
    switch_on(&format!("/proc/sys/net/{family}/conf/{link}/forwarding"))
}

fn switch_on(file: &str) -> Result<()> {
    use crate::Context;
    // A sysctl that is already set may be on a read-only mount.
    if std::fs::read_to_string(file).is_ok_and(|value| value.trim() == "1") {
        return Ok(());
    }
    std::fs::write(file, "1").doing(format!("write {file}"))
}

/// Removes the pod's interface, if it exists.
pub(crate) async fn remove(call: &Call<'_>) -> Result<()> {
    let Some(netns) = call.netns else { return Ok(()) };
    netns::open(netns).await?.remove(call.interface).await
}

/// Brings the pod's interface down, if it exists.
pub(crate) async fn down(call: &Call<'_>) -> Result<()> {
    let Some(netns) = call.netns else { return Ok(()) };
    let inside = netns::open(netns).await?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_host_links_fit_and_differ() {
        let id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        assert_eq!(host_link(id, "eth0"), "bv0123456789abc");
        let others = [host_link(id, "net1"), host_link(id, "net2"), host_link("short", "eth0")];
        assert!(others.iter().all(|name| name.len() == 15), "{others:?}");
        assert!(others[0] != others[1] && others[1] != others[2], "{others:?}");
    }
}
