//! What the plugins that make an interface in a pod have in common.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use serde::Deserialize;
use serde_json::Value;

use crate::call::Call;
use crate::netlink::Link;
use crate::netns::Configured;
use crate::result::{CniResult, Dns};
use crate::{Error, Result, netns};

/// As [`netns::configure`], but fails where another in the network has one of the addresses.
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
    inside.settle(link.index, &changes).await?;
    for route in result.routes_with_gateways() {
        inside.add_route(link.index, &route, None).await?;
    }
    Ok(Configured { link, inside })
}

/// What the name of each host's end of a pod's veth begins with.
pub(crate) const HOST_LINK_PREFIX: &str = "bv";

/// The host's end of a pod's veth. A link's name has at most 15 characters (IFNAMSIZ): that of a pod's first interface
/// shows whose it is.
pub(crate) fn host_link(container: &str, interface: &str) -> String {
    match interface {
        "eth0" if container.len() >= 13 && container.is_char_boundary(13) => {
            format!("{HOST_LINK_PREFIX}{}", container.get(..13).unwrap_or(container))
        }
        _ => format!("{HOST_LINK_PREFIX}{:013x}", hash(&[container, interface]) >> 12),
    }
}

/// FNV-1a: the same everywhere and for ever, which the standard library's is not.
pub(crate) fn hash(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// What the configuration says of name servers, else what the addresses came with.
pub(crate) fn dns(config: &Value, found: Dns) -> Dns {
    let said = config.get("dns").and_then(|dns| Dns::deserialize(berth_json::NullIsAbsent(dns)).ok());
    said.filter(|dns| *dns != Dns::default()).unwrap_or(found)
}

/// The host passes packets on between its links (ip-sysctl, `ip_forward`).
pub(crate) fn forward(v4: bool) -> Result<()> {
    switch_on(match v4 {
        true => "/proc/sys/net/ipv4/ip_forward",
        false => "/proc/sys/net/ipv6/conf/all/forwarding",
    })
}

/// It passes on what comes by one of them, too, where somebody has said otherwise of that one.
pub(crate) fn forward_from(link: &str, v4: bool) -> Result<()> {
    let family = if v4 { "ipv4" } else { "ipv6" };
    switch_on(&format!("/proc/sys/net/{family}/conf/{link}/forwarding"))
}

fn switch_on(file: &str) -> Result<()> {
    use crate::Context;
    // What is as it should be already may be in a place that cannot be written to.
    if std::fs::read_to_string(file).is_ok_and(|value| value.trim() == "1") {
        return Ok(());
    }
    std::fs::write(file, "1").doing(format!("write {file}"))
}

/// Removes the pod's interface; one that is gone is removed already.
pub(crate) async fn remove(call: &Call<'_>) -> Result<()> {
    let Some(netns) = call.netns else { return Ok(()) };
    netns::open(netns).await?.remove(call.interface).await
}

/// Takes the pod's interface down; one that is gone is down already.
pub(crate) async fn down(call: &Call<'_>) -> Result<()> {
    let Some(netns) = call.netns else { return Ok(()) };
    let inside = netns::open(netns).await?;
    match inside.link(call.interface).await? {
        Some(link) => inside.change(link.index, "set the state", |link| link.down()).await,
        None => Ok(()),
    }
}

/// Whether the pod's interface has what its result says.
pub(crate) async fn check(call: &Call<'_>, previous: &CniResult) -> Result<Link> {
    let inside = call.inside().await?;
    let gone = || Error::Invalid(format!("{}: the interface is gone", call.interface));
    let link = inside.link(call.interface).await?.ok_or_else(gone)?;
    let of_pod: Vec<_> = previous.of_pod().collect();
    let told = of_pod.iter().find(|(_, interface)| interface.name == call.interface);
    let Some((place, told)) = told else {
        return Err(Error::Invalid(format!("{}: is not in the result", call.interface)));
    };
    if !told.mac.is_empty() && told.mac != link.mac_text() {
        let found = link.mac_text();
        return Err(Error::Invalid(format!("{}: its address is {found}, not {}", call.interface, told.mac)));
    }
    let known = inside.addresses(link.index).await?;
    let own = previous.ips.iter().filter(|ip| ip.interface.is_none_or(|interface| interface == *place));
    for ip in own {
        if !known.contains(&ip.address) {
            return Err(Error::Invalid(format!("{}: does not have {}", call.interface, ip.address)));
        }
    }
    let routes = inside.routes().await?;
    for route in &previous.routes {
        let gateway: Option<IpAddr> = route.gw.or_else(|| previous.gateway(route.dst.addr().is_ipv4()));
        let is_there = |known: &crate::netlink::routes::Known| {
            known.to == route.dst.trunc() && (known.gateway == gateway || route.gw.is_none())
        };
        if !routes.iter().any(is_there) {
            return Err(Error::Invalid(format!("{}: the route to {} is gone", call.interface, route.dst)));
        }
    }
    Ok(link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_the_host_have_names_that_fit_and_differ() {
        let id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        assert_eq!(host_link(id, "eth0"), "bv0123456789abc");
        let others = [host_link(id, "net1"), host_link(id, "net2"), host_link("short", "eth0")];
        assert!(others.iter().all(|name| name.len() == 15), "{others:?}");
        assert!(others[0] != others[1] && others[1] != others[2], "{others:?}");
    }
}
