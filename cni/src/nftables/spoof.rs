//! Protection against spoofed hardware addresses (the bridge's `macspoofchk`): a pod's frames with another source
//! address are dropped.

use super::elements::{Element, Value, joined};
use super::expression::{Expressions, Meta, SOURCE_MAC, Verdict};
use super::message::Family;
use super::sets::SPOOF;
use super::table::{self, Chain, Hook, TablePart};
use super::uapi::NF_BR_PRE_ROUTING;
use super::{Removal, Rules, blocking};
use crate::Result;
use crate::mac::parse_mac;
use crate::result::CniResult;

/// Before the other hooks (linux/netfilter_bridge.h, `NF_BR_PRI_FILTER_BRIDGED`).
const PREROUTING: Hook = Hook { kind: "filter", place: NF_BR_PRE_ROUTING, priority: -300 };

/// Allows only frames from `mac` on the link `name`.
pub(crate) async fn allow(rules: &Rules<'_>, name: &str, mac: &[u8]) -> Result<()> {
    let owner = rules.owner.clone();
    let elements = elements(name, mac);
    let installed = rules.installed.clone();
    let action = format!("restrict the hardware address of {owner}");
    blocking(action, move || table::add(&installed, &[base()], &elements, &owner)).await
}

fn elements(name: &str, mac: &[u8]) -> Vec<Element> {
    let mut link = name.as_bytes().to_vec();
    // The kernel looks up a name with its full length of IFNAMSIZ.
    link.resize(16, 0);
    let [guarded, senders] = SPOOF;
    vec![
        Element { set: senders.name, key: joined(&[&link, mac]), value: Value::None },
        Element { set: guarded.name, key: link, value: Value::None },
    ]
}

/// Removes the restriction of the link `name` of an attachment.
pub(crate) async fn remove(rules: &Rules<'_>, name: &str, result: &CniResult) -> Result<()> {
    let macs = result.of_pod().filter_map(|(_, interface)| parse_mac(&interface.mac).ok());
    let elements: Vec<_> = macs.flat_map(|mac| elements(name, &mac)).collect();
    super::release(&rules.owner, &SPOOF, Removal::of(rules, result, elements)).await
}

fn base() -> TablePart {
    let [guarded, senders] = SPOOF;
    let on_guarded_port = Expressions::default().meta(Meta::InName).in_set(guarded.name, true);
    let spoofed = on_guarded_port.meta(Meta::InName).field(SOURCE_MAC).in_set(senders.name, false);
    TablePart {
        name: "spoof".to_owned(),
        family: Family::Bridge,
        sets: SPOOF.to_vec(),
        chains: vec![Chain {
            name: "spoof".to_owned(),
            hook: Some(PREROUTING),
            rules: vec![spoofed.verdict(Verdict::Drop)],
        }],
    }
}
