//! Which bridges forward to which pods (`firewall` with the policy `same-bridge`): a pod is reached from its own bridge and
//! from outside, and not from the pods of other bridges that are guarded so.

use std::net::IpAddr;

use super::blocking;
use super::elements::{Element, Value, joined};
use super::expression::{Expressions, Meta, Verdict, Version, bytes};
use super::message::Family;
use super::table::{self, Chain, Hook, Part, Set, Type};
use super::{Holding, foreign};
use crate::Result;
use crate::call::Call;
use crate::result::CniResult;

/// Bridges that are guarded; by IP version, pods that are and the bridge of each.
pub(super) const SETS: [Set; 5] = [
    BRIDGES,
    Set { name: "isolated4", key: Type::IPV4, value: None },
    Set { name: "isolated6", key: Type::IPV6, value: None },
    Set { name: "same-bridge4", key: Type::LINK.with(Type::IPV4), value: None },
    Set { name: "same-bridge6", key: Type::LINK.with(Type::IPV6), value: None },
];

/// A bridge stays in it when its last pod has gone: that is nothing to anybody.
pub(super) const BRIDGES: Set = Set { name: "isolating", key: Type::LINK, value: None };

/// `NF_INET_FORWARD`, among others' filters.
const FORWARD: Hook = Hook { kind: "filter", place: 2, priority: 0 };

/// The sets of one IP version: pods, and pods with their bridges.
fn names(version: Version) -> (&'static str, &'static str) {
    let [_, pods4, pods6, places4, places6] = SETS;
    match version {
        Version::V4 => (pods4.name, places4.name),
        Version::V6 => (pods6.name, places6.name),
    }
}

/// Guards the addresses of an attachment, which is on a bridge.
pub(crate) async fn apply(call: &Call<'_>, bridge: &str, addresses: Vec<IpAddr>) -> Result<()> {
    let owner = call.owner();
    let link = name_of(bridge);
    let elements = elements(bridge, &addresses);
    let made = call.host.made.clone();
    let action = format!("guard {owner}");
    blocking(action, move || {
        let of_bridge = super::Comment::new(&owner.network, "-", "-");
        let known = Element { set: BRIDGES.name, key: link, value: Value::None };
        table::add(&made, &[base()], &[known], &of_bridge)?;
        table::add(&made, &[base()], &elements, &owner)
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
        let (pods, places) = names(Version::of(*address));
        let (pod, place) = (bytes(*address), joined(&[&name_of(bridge), &bytes(*address)]));
        [(pods, pod), (places, place)].map(|(set, key)| Element { set, key, value: Value::None })
    });
    elements.collect()
}

/// Guards an attachment no more.
pub(crate) async fn forget(call: &Call<'_>, result: &CniResult) -> Result<()> {
    let addresses: Vec<IpAddr> = result.ips.iter().map(|ip| ip.address.addr()).collect();
    // One of them is the bridge.
    let of_host = result.interfaces.iter().filter(|interface| interface.sandbox.is_empty());
    let elements = of_host.flat_map(|interface| elements(&interface.name, &addresses)).collect();
    super::release(call.owner(), &SETS, Holding::of(call, result, elements)).await
}

/// A chain of somebody else's that drops what it has no rule for on the way to a pod.
pub(crate) async fn closed_elsewhere() -> Result<Option<String>> {
    blocking("look at others' chains".to_owned(), || foreign::closing_chain(FORWARD.place)).await
}

fn base() -> Part {
    let rules = |version: Version| {
        let (pods, places) = names(version);
        let start = || Expressions::of(version);
        let to = version.destination();
        [
            start().meta(Meta::InName).field(to).in_set(places, true).verdict(Verdict::Return),
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
