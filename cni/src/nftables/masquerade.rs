//! Masquerading: packets from pods get the host's address, except for packets to the pod's subnet and to multicast
//! addresses.
//!
//! A map leads from a pod's address to the chain of its subnet. Like the bridge, the chain stays for the next pod when
//! its last pod is gone.

use ipnet::IpNet;

use super::elements::{Element, Value};
use super::expression::{Expressions, IpVersion, Verdict, bytes};
use super::message::Family;
use super::sets::MASQUERADE;
use super::table::{self, Chain, Hook, JUMPED_TO, TablePart};
use super::uapi::NF_INET_POST_ROUTING;
use super::{Removal, Rules, blocking};
use crate::Result;
use crate::result::CniResult;

/// The hook of packets that leave the host, at the priority of source NAT.
pub(super) const POSTROUTING: Hook = Hook { kind: "nat", place: NF_INET_POST_ROUTING, priority: 100 };

pub(super) fn name_of(set: usize) -> &'static str {
    MASQUERADE.get(set).map_or("", |set| set.name)
}

fn map(version: IpVersion) -> &'static str {
    match version {
        IpVersion::V4 => name_of(0),
        IpVersion::V6 => name_of(1),
    }
}

/// Masquerades packets from the addresses of an attachment.
pub(crate) async fn apply(rules: &Rules<'_>, result: &CniResult) -> Result<()> {
    let owner = rules.owner.clone();
    let subnets: Vec<IpNet> = result.ips.iter().map(|ip| ip.address).collect();
    let installed = rules.installed.clone();
    let action = format!("masquerade {owner}");
    blocking(action, move || {
        let parts: Vec<TablePart> = [base()].into_iter().chain(subnets.iter().map(of_subnet)).collect();
        let elements: Vec<Element> = subnets.iter().map(element).collect();
        table::add(&installed, &parts, &elements, &owner)
    })
    .await
}

/// Removes the chains of subnets that have no pods.
pub(crate) async fn remove_unused(installed: &super::InstalledParts) -> Result<()> {
    let installed = installed.clone();
    blocking("remove unused chains".to_owned(), move || table::remove_unused_chains(&installed)).await
}

/// Removes the masquerading of an attachment.
pub(crate) async fn remove(rules: &Rules<'_>, result: &CniResult) -> Result<()> {
    let elements = result.ips.iter().map(|ip| element(&ip.address)).collect();
    super::release(&rules.owner, &MASQUERADE, Removal::of(rules, result, elements)).await
}

/// A chain that masquerades the packets of every IPv4 address.
pub(super) fn of_all_packets() -> TablePart {
    let name = "masquerade-all".to_owned();
    let rules = vec![Expressions::default().masquerade()];
    let chains = vec![Chain { name: name.clone(), hook: Some(POSTROUTING), rules }];
    TablePart { name, family: Family::Ip, sets: Vec::new(), chains }
}

fn base() -> TablePart {
    let rule = |version: IpVersion| Expressions::of(version).field(version.source()).verdict_of(map(version));
    TablePart {
        name: "masquerade".to_owned(),
        family: Family::Inet,
        sets: MASQUERADE.to_vec(),
        chains: vec![Chain {
            name: "masquerade".to_owned(),
            hook: Some(POSTROUTING),
            rules: IpVersion::BOTH.map(rule).into(),
        }],
    }
}

/// Returns the name of a subnet's chain, in characters that nft(8) accepts.
fn chain_of(subnet: &IpNet) -> String {
    format!("{JUMPED_TO}{}", subnet.trunc()).replace(':', "_")
}

fn of_subnet(subnet: &IpNet) -> TablePart {
    let version = IpVersion::of(subnet.addr());
    let to = |net: IpNet| {
        let rule = Expressions::of(version).field(version.destination()).within(net);
        rule.verdict(Verdict::Return)
    };
    let name = chain_of(subnet);
    let rules = vec![to(subnet.trunc()), to(version.multicast()), Expressions::default().masquerade()];
    TablePart {
        name: name.clone(),
        family: Family::Inet,
        sets: Vec::new(),
        chains: vec![Chain { name, hook: None, rules }],
    }
}

fn element(subnet: &IpNet) -> Element {
    Element {
        set: map(IpVersion::of(subnet.addr())),
        key: bytes(subnet.addr()),
        value: Value::Jump(chain_of(subnet)),
    }
}
