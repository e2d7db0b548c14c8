//! A pod sends frames with its own hardware address alone (`macspoofchk` of the bridge): what comes by its port from
//! another is dropped.

use super::Holding;
use super::blocking;
use super::elements::{Element, Value, joined};
use super::expression::{Expressions, Meta, SOURCE_MAC, Verdict};
use super::message::Family;
use super::table::{self, Chain, Hook, Part, Set, Type};
use crate::Result;
use crate::call::{Call, parse_mac};
use crate::result::CniResult;

/// The ports that are looked at, and which address may come by which.
pub(super) const SETS: [Set; 2] = [
    Set { name: "guarded", key: Type::LINK, value: None },
    Set { name: "senders", key: link_and_mac(), value: None },
];

const fn link_and_mac() -> Type {
    Type::LINK.with(Type::MAC)
}

/// `NF_BR_PRE_ROUTING`, before anything else (linux/netfilter_bridge.h, `NF_BR_PRI_FILTER_BRIDGED`).
const PREROUTING: Hook = Hook { kind: "filter", place: 0, priority: -300 };

/// Lets frames from `mac` come by the link `name`, and no others.
pub(crate) async fn allow(call: &Call<'_>, name: &str, mac: &[u8]) -> Result<()> {
    let owner = call.owner();
    let elements = elements(name, mac);
    let made = call.host.made.clone();
    let action = format!("guard the hardware address of {owner}");
    blocking(action, move || table::add(&made, &[base()], &elements, &owner)).await
}

fn elements(name: &str, mac: &[u8]) -> Vec<Element> {
    let mut link = name.as_bytes().to_vec();
    // A name is looked up with all of IFNAMSIZ.
    link.resize(16, 0);
    let [guarded, senders] = SETS;
    vec![
        Element { set: senders.name, key: joined(&[&link, mac]), value: Value::None },
        Element { set: guarded.name, key: link, value: Value::None },
    ]
}

/// Lets any frames come by the link `name` of an attachment, which is to go.
pub(crate) async fn forget(call: &Call<'_>, name: &str, result: &CniResult) -> Result<()> {
    let macs = result.of_pod().filter_map(|(_, interface)| parse_mac(&interface.mac).ok());
    let elements: Vec<_> = macs.flat_map(|mac| elements(name, &mac)).collect();
    super::release(call.owner(), &SETS, Holding::of(call, result, elements)).await
}

fn base() -> Part {
    let [guarded, senders] = SETS;
    let of_guarded = Expressions::default().meta(Meta::InName).in_set(guarded.name, true);
    let from_another = of_guarded.meta(Meta::InName).field(SOURCE_MAC).in_set(senders.name, false);
    Part {
        name: "spoof".to_owned(),
        family: Family::Bridge,
        sets: SETS.to_vec(),
        chains: vec![Chain {
            name: "spoof".to_owned(),
            hook: Some(PREROUTING),
            rules: vec![from_another.verdict(Verdict::Drop)],
        }],
    }
}
