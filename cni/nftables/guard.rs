//! Isolation of bridges (`firewall` with the policy `same-bridge`): a pod is reachable from its own bridge and from
//! outside, but not from pods on other isolated bridges.

use std::net::IpAddr;

use super::blocking;
use super::elements::{Element, Value, joined};
use super::expression::{Expressions, Meta, Verdict, Version, bytes};
use super::message::Family;
use super::table::{self, Chain, Hook, Part, Set, Type};
use super::{Removal, foreign};
use crate::Result;
use crate::call::Call;
use crate::result::CniResult;

/// The isolated bridges; per IP version, the isolated pods and the pairs of bridge and pod.
pub(super) const SETS: [Set; 5] = [
    BRIDGES,
    Set { name: "isolated4", key: Type::IPV4, value: None },
    Set { name: "isolated6", key: Type::IPV6, value: None },
    Set { name: "same-bridge4", key: Type::LINK.with(Type::IPV4), value: None },
    Set { name: "same-bridge6", key: Type::LINK.with(Type::IPV6), value: None },
];

/// The isolated bridges. A bridge stays in the set after its last pod is gone, which has no effect.
pub(super) const BRIDGES: Set = Set { name: "isolating", key: Type::LINK, value: None };

/// `NF_INET_FORWARD` at the usual priority of filters.
const FORWARD: Hook = Hook { kind: "filter", place: 2, priority: 0 };

/// The names of the sets of one IP version: pods, and pairs of bridge and pod.
fn names(version: Version) -> (&'static str, &'static str) {
    let [_, pods4, pods6, pairs4, pairs6] = SETS;
    match version {
        Version::V4 => (pods4.name, pairs4.name),
        Version::V6 => (pods6.name, pairs6.name),
    }
}

/// Isolates the addresses of an attachment on a bridge.
pub(crate) async fn apply(call: &Call<'_>, bridge: &str, addresses: Vec<IpAddr>) -> Result<()> {
    let owner = call.owner();
    let link = name_of(bridge);
    let elements = elements(bridge, &addresses);
    let installed = call.host.made.clone();
    let action = format!("isolate {owner}");
    blocking(action, move || {
        let of_bridge = super::Comment::new(&owner.network, "-", "-");
        let bridge = Element { set: BRIDGES.name, key: link, value: Value::None };
        table::add(&installed, &[base()], &[bridge], &of_bridge)?;
        table::add(&installed, &[base()], &elements, &owner)
    })
    .await
}

fn name_of(link: &str) -> Vec<u8> {
    let mut link = link.as_bytes().to_vec();
    link.resize(16, 0);
    link
}

fn elements(bridge: &str, addresses: &[IpAddr]) -> Vec<Element> {
    let elements = addresses.iter().flat_map(|address| {
        let (pods, pairs) = names(Version::of(*address));
        let (pod, pair) = (bytes(*address), joined(&[&name_of(bridge), &bytes(*address)]));
        [(pods, pod), (pairs, pair)].map(|(set, key)| Element { set, key, value: Value::None })
    });
    elements.collect()
}

/// Removes the isolation of an attachment.
pub(crate) async fn remove(call: &Call<'_>, result: &CniResult) -> Result<()> {
    let addresses: Vec<IpAddr> = result.ips.iter().map(|ip| ip.address.addr()).collect();
    // One of the host's interfaces is the bridge.
    let of_host = result.interfaces.iter().filter(|interface| interface.sandbox.is_empty());
    let elements = of_host.flat_map(|interface| elements(&interface.name, &addresses)).collect();
    super::release(call.owner(), &SETS, Removal::of(call, result, elements)).await
}

/// Returns a foreign chain that drops forwarded packets which it has no rule for.
pub(crate) async fn foreign_closing_chain() -> Result<Option<String>> {
    blocking("read foreign chains".to_owned(), || foreign::closing_chain(FORWARD.place)).await
}

fn base() -> Part {
    let rules = |version: Version| {
        let (pods, pairs) = names(version);
        let start = || Expressions::of(version);
        let to = version.destination();
        [
            start().meta(Meta::InName).field(to).in_set(pairs, true).verdict(Verdict::Return),
            start()
                .meta(Meta::InName)
                .in_set(BRIDGES.name, true)
                .field(to)
                .in_set(pods, true)
                .verdict(Verdict::Drop),
        ]
    };
    Part {
        name: "guard".to_owned(),
        family: Family::Inet,
        sets: SETS.to_vec(),
        chains: vec![Chain {
            name: "guard".to_owned(),
            hook: Some(FORWARD),
            rules: Version::BOTH.into_iter().flat_map(rules).collect(),
        }],
    }
}
