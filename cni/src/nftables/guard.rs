//! Isolation of bridges (`firewall` with the policy `same-bridge`): a pod is reachable from its own bridge and from
//! outside, but not from pods on other isolated bridges.

use std::net::IpAddr;

use super::blocking;
use super::comment::Comment;
use super::elements::{Element, Value, joined};
use super::expression::{Expressions, IpVersion, Meta, Verdict, bytes};
use super::message::Family;
use super::sets::{GUARD, GUARD_BRIDGES};
use super::table::{self, Chain, Hook, TablePart};
use super::uapi::NF_INET_FORWARD;
use super::{Removal, Rules, foreign};
use crate::Result;
use crate::result::CniResult;

/// The hook of packets that the host forwards, at the usual priority of filters.
const FORWARD: Hook = Hook { kind: "filter", place: NF_INET_FORWARD, priority: 0 };

/// The names of the sets of one IP version: pods, and pairs of bridge and pod.
fn names(version: IpVersion) -> (&'static str, &'static str) {
    let [_, pods4, pods6, pairs4, pairs6] = GUARD;
    match version {
        IpVersion::V4 => (pods4.name, pairs4.name),
        IpVersion::V6 => (pods6.name, pairs6.name),
    }
}

/// Isolates the addresses of an attachment on a bridge.
pub(crate) async fn apply(rules: &Rules<'_>, bridge: &str, addresses: Vec<IpAddr>) -> Result<()> {
    let owner = rules.owner.clone();
    let link = name_of(bridge);
    let elements = elements(bridge, &addresses);
    let installed = rules.installed.clone();
    let action = format!("isolate {owner}");
    blocking(action, move || {
        let of_bridge = Comment::new(&owner.network, "-", "-");
        let bridge = Element { set: GUARD_BRIDGES.name, key: link, value: Value::None };
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
        let (pods, pairs) = names(IpVersion::of(*address));
        let (pod, pair) = (bytes(*address), joined(&[&name_of(bridge), &bytes(*address)]));
        [(pods, pod), (pairs, pair)].map(|(set, key)| Element { set, key, value: Value::None })
    });
    elements.collect()
}

/// Removes the isolation of an attachment.
pub(crate) async fn remove(rules: &Rules<'_>, result: &CniResult) -> Result<()> {
    let addresses: Vec<IpAddr> = result.ips.iter().map(|ip| ip.address.addr()).collect();
    // One of the host's interfaces is the bridge.
    let of_host = result.interfaces.iter().filter(|interface| interface.sandbox.is_empty());
    let elements = of_host.flat_map(|interface| elements(&interface.name, &addresses)).collect();
    super::release(&rules.owner, &GUARD, Removal::of(rules, result, elements)).await
}

/// Returns a foreign chain that drops forwarded packets which it has no rule for.
pub(crate) async fn foreign_closing_chain() -> Result<Option<String>> {
    blocking("read foreign chains".to_owned(), || foreign::closing_chain(FORWARD.place)).await
}

fn base() -> TablePart {
    let rules = |version: IpVersion| {
        let (pods, pairs) = names(version);
        let start = || Expressions::of(version);
        let to = version.destination();
        [
            start().meta(Meta::InName).field(to).in_set(pairs, true).verdict(Verdict::Return),
            start()
                .meta(Meta::InName)
                .in_set(GUARD_BRIDGES.name, true)
                .field(to)
                .in_set(pods, true)
                .verdict(Verdict::Drop),
        ]
    };
    TablePart {
        name: "guard".to_owned(),
        family: Family::Inet,
        sets: GUARD.to_vec(),
        chains: vec![Chain {
            name: "guard".to_owned(),
            hook: Some(FORWARD),
            rules: IpVersion::BOTH.into_iter().flat_map(rules).collect(),
        }],
    }
}
