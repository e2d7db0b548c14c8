//! Host ports that are forwarded to pods.
//!
//! Maps lead from protocol and port (and the host address, if one is specified) to a pod's address and port. They are
//! consulted only for packets to an address of this host (`fib daddr type local`: GHSA-jv3w-x3r3-g6rm of the reference
//! plugin), and after the rules of services (kube-proxy's, at the priority of destination NAT: CVE-2019-9946).
//!
//! The answers of a pod must return through this host. If the pod would answer directly (itself, or a neighbour on the
//! bridge) or cannot answer at all (127.0.0.1), the source address is rewritten to the host's. Packets from 127.0.0.1
//! can leave only through a link with `route_localnet`. The first chain prevents that others on the link then reach
//! services on 127.0.0.1 (CVE-2020-8558).

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;

use super::elements::{self, Element, Value, joined};
use super::expression::{DESTINATION_PORT, Expressions, IpVersion, Meta, Verdict, bytes};
use super::masquerade::POSTROUTING;
use super::message::Family;
use super::sets::PORTS;
use super::table::{self, Chain, Hook, JUMPED_TO, TablePart};
use super::uapi::{NF_INET_LOCAL_OUT, NF_INET_PRE_ROUTING};
use super::{Removal, Rules, blocking};
use crate::{Protocol, Result};

/// The names of the sets of one IP version.
struct Names {
    everywhere: &'static str,
    at: &'static str,
    hairpin: &'static str,
}

fn names(version: IpVersion) -> Names {
    let [all4, all6, at4, at6, hairpin4, hairpin6] = PORTS;
    match version {
        IpVersion::V4 => Names { everywhere: all4.name, at: at4.name, hairpin: hairpin4.name },
        IpVersion::V6 => Names { everywhere: all6.name, at: at6.name, hairpin: hairpin6.name },
    }
}

/// Slightly after `NF_IP_PRI_NAT_DST` (-100), the priority of services.
const AFTER_SERVICES: i32 = -90;

/// A host port that is forwarded to an address.
#[derive(Clone, Debug)]
pub(crate) struct Mapping {
    pub(crate) protocol: Protocol,
    pub(crate) host_port: u16,
    pub(crate) host_address: Option<IpAddr>,
    pub(crate) pod: IpNet,
    pub(crate) pod_port: u16,
}

/// Maps host ports. If `masquerade`, connections whose answers would not return through this host are masqueraded.
///
/// # Errors
/// Another pod has one of the ports.
pub(crate) async fn apply(rules: &Rules<'_>, mappings: &[Mapping], masquerade: bool) -> Result<()> {
    let owner = rules.owner.clone();
    let installed = rules.installed.clone();
    let action = format!("map host {} to {owner}", describe(mappings));
    let (pods, mapped) = (pods(mappings), mappings.iter().map(element).collect::<Vec<_>>());
    blocking(action, move || {
        let (mut parts, mut elements) = (vec![base()], mapped.clone());
        if masquerade {
            parts.extend(pods.iter().map(hairpin_of));
            elements.extend(pods.iter().map(hairpin));
        }
        match table::add(&installed, &parts, &elements, &owner) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let holder = elements::holder_of(&mapped, &owner)?;
                let holder = holder.map_or("another pod".to_owned(), |holder| {
                    format!("pod {} of network {}", holder.container, holder.network)
                });
                Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("already used by {holder}")))
            }
            added => added,
        }
    })
    .await
}

/// Describes ports: `port 80`, `ports 80, 81, 82, 83, 84 and 265 more`.
fn describe(mappings: &[Mapping]) -> String {
    const SHOWN: usize = 5;
    // A port has a mapping for each family.
    let ports: std::collections::BTreeSet<u16> = mappings.iter().map(|mapping| mapping.host_port).collect();
    let shown: Vec<_> = ports.iter().take(SHOWN).map(u16::to_string).collect();
    match ports.len() {
        1 => format!("port {}", shown.join("")),
        2..=SHOWN => format!("ports {}", shown.join(", ")),
        all => format!("ports {} and {} more", shown.join(", "), all.saturating_sub(SHOWN)),
    }
}

fn pods(mappings: &[Mapping]) -> Vec<IpNet> {
    let mut pods: Vec<IpNet> = mappings.iter().map(|mapping| mapping.pod).collect();
    pods.sort_unstable();
    pods.dedup();
    pods
}

/// Whether a host port is mapped as specified.
pub(crate) async fn is_mapped(mapping: &Mapping) -> Result<bool> {
    let element = element(mapping);
    let action = format!("find host port {}", mapping.host_port);
    blocking(action, move || elements::has(&element)).await
}

/// Removes the host ports of an attachment. Without `mappings`, all elements of the attachment are removed.
pub(crate) async fn remove(rules: &Rules<'_>, mappings: Option<&[Mapping]>) -> Result<()> {
    let elements = |mappings: &[Mapping]| {
        let hairpins = pods(mappings);
        mappings.iter().map(element).chain(hairpins.iter().map(hairpin)).collect()
    };
    let removal = mappings.map_or(Removal::AllOfOwner, |mappings| Removal::Elements(elements(mappings)));
    super::release(&rules.owner, &PORTS, removal).await
}

fn element(mapping: &Mapping) -> Element {
    let names = names(IpVersion::of(mapping.pod.addr()));
    let (protocol, port) = ([mapping.protocol.number()], mapping.host_port.to_be_bytes());
    let (set, key) = match mapping.host_address {
        None => (names.everywhere, joined(&[&protocol, &port])),
        Some(address) => (names.at, joined(&[&bytes(address), &protocol, &port])),
    };
    let value = joined(&[&bytes(mapping.pod.addr()), &mapping.pod_port.to_be_bytes()]);
    Element { set, key, value: Value::Bytes(value) }
}

fn base() -> TablePart {
    let chain = |name: &str, hook: Option<Hook>, rules: Vec<Expressions>| Chain {
        name: name.to_owned(),
        hook,
        rules,
    };
    let here = |place: u32| Hook { kind: "nat", place, priority: AFTER_SERVICES };
    let look_up = || vec![Expressions::default().destination_is_local().verdict(Verdict::Jump("ports"))];
    let find = |version: IpVersion| {
        let (names, start) = (names(version), || Expressions::of(version));
        let port = |rule: Expressions| rule.meta(Meta::L4proto).field(DESTINATION_PORT);
        [
            port(start().field(version.destination())).redirect_by(names.at, version),
            port(start()).redirect_by(names.everywhere, version),
        ]
    };
    let back = |version: IpVersion| {
        let rule = Expressions::default().redirected().meta(Meta::Nfproto).is(&[version.number()]);
        rule.field(version.destination()).verdict_of(names(version).hairpin)
    };
    TablePart {
        name: "ports".to_owned(),
        family: Family::Inet,
        sets: PORTS.to_vec(),
        chains: vec![
            // Before conntrack translates addresses: answers to this host's own packets still have
            // their translated destination.
            chain(
                "localhost",
                Some(Hook { kind: "filter", place: NF_INET_PRE_ROUTING, priority: -300 }),
                vec![only_from_loopback()],
            ),
            chain("ports", None, IpVersion::BOTH.into_iter().flat_map(find).collect()),
            chain("ports-in", Some(here(NF_INET_PRE_ROUTING)), look_up()),
            // Connections of this host.
            chain("ports-out", Some(here(NF_INET_LOCAL_OUT)), look_up()),
            chain("hairpin", Some(POSTROUTING), IpVersion::BOTH.map(back).into()),
        ],
    }
}

fn only_from_loopback() -> Expressions {
    let mut loopback = b"lo".to_vec();
    loopback.resize(16, 0);
    let rule = Expressions::default().meta(Meta::InName).unless(&loopback);
    let rule = rule.meta(Meta::Nfproto).is(&[IpVersion::V4.number()]);
    rule.field(IpVersion::V4.destination()).within(localhost()).verdict(Verdict::Drop)
}

fn localhost() -> IpNet {
    IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(127, 0, 0, 0), 8))
}

fn hairpin_chain(pod: &IpNet) -> String {
    format!("{JUMPED_TO}hairpin-{}", pod.trunc()).replace(':', "_")
}

/// The chain that masquerades packets redirected to a pod from its own subnet, or from this host's loopback.
fn hairpin_of(pod: &IpNet) -> TablePart {
    let version = IpVersion::of(pod.addr());
    let from = |net: IpNet| Expressions::of(version).field(version.source()).within(net).masquerade();
    let name = hairpin_chain(pod);
    let rules = match version {
        IpVersion::V4 => vec![from(pod.trunc()), from(localhost())],
        IpVersion::V6 => vec![from(pod.trunc())],
    };
    TablePart {
        name: name.clone(),
        family: Family::Inet,
        sets: Vec::new(),
        chains: vec![Chain { name, hook: None, rules }],
    }
}

fn hairpin(pod: &IpNet) -> Element {
    let set = names(IpVersion::of(pod.addr())).hairpin;
    Element { set, key: bytes(pod.addr()), value: Value::Jump(hairpin_chain(pod)) }
}
