//! Foreign nftables rules that drop pods' packets: docker drops forwarded packets with iptables, firewalld and
//! administrators do so with nftables. A rule of berth's table can drop packets, but cannot accept what another table
//! drops.
//!
//! * this file: a packet's path through them; [`rule`]: the evaluation of one rule; [`legacy`]: the
//!   rules of an iptables that does not use nftables
//! * [`conditions`]: the results of conditions, and their logic with unknown facts
//! * [`iptables`]: the matches of iptables in a rule of nftables

mod conditions;
mod iptables;
mod legacy;
mod rule;

use std::io;

use ipnet::IpNet;

use super::TABLE;
use super::chains::{InstalledChain, chains};
use super::message::{Family, list};
use super::uapi::{
    NF_DROP, NF_INET_FORWARD, NFT_MSG_GETRULE, NFT_MSG_GETSETELEM, NFTA_DATA_VALUE, NFTA_RULE_CHAIN,
    NFTA_RULE_EXPRESSIONS, NFTA_RULE_TABLE, NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_LIST_ELEMENTS,
    NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_TABLE,
};
use crate::netlink::attributes::{attribute, attributes, text_of};
use conditions::Match;
use rule::{ForeignRule, Outcome};

/// The maximum depth of jumps between chains (the kernel's `NFT_JUMP_STACK_SIZE`).
const DEPTH: usize = 16;

/// Returns a foreign chain at a hook that drops every packet which it has no rule for.
pub(super) fn closing_chain(hook: u32) -> io::Result<Option<String>> {
    for family in [Family::Inet, Family::Ip, Family::Ip6] {
        let closes = |chain: &InstalledChain| {
            chain.table != TABLE
                && chain.hook.is_some_and(|(at, _)| at == hook)
                && chain.policy == Some(NF_DROP)
        };
        if let Some(chain) = chains(family)?.into_iter().find(closes) {
            return Ok(Some(format!("chain {} of table {}", chain.name, chain.table)));
        }
    }
    Ok(None)
}

/// The first packet of a connection from a pod to another host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    /// The host's link through which the packet arrives.
    pub(crate) by: String,
    /// The source addresses.
    pub(crate) from: IpNet,
}

/// Returns the foreign rule that certainly drops such a packet. Rules that depend on unknown facts do not count.
pub(crate) fn obstacle(packet: &Packet) -> io::Result<Option<String>> {
    Ok(in_nftables(packet)?.or_else(|| legacy::obstacle(packet)))
}

fn in_nftables(packet: &Packet) -> io::Result<Option<String>> {
    let own = if packet.from.addr().is_ipv4() { Family::Ip } else { Family::Ip6 };
    for family in [Family::Inet, own] {
        let all = chains(family)?;
        let forwards = |chain: &&InstalledChain| {
            chain.hook.is_some_and(|(at, _)| at == NF_INET_FORWARD) && chain.table != TABLE
        };
        for chain in all.iter().filter(forwards) {
            let table = Table { family, name: &chain.table };
            let outcome = table.walk(&chain.name, packet, 0)?;
            let dropped = match outcome {
                Outcome::Dropped => true,
                Outcome::Unknown | Outcome::Accepted => false,
                Outcome::Undecided => chain.policy == Some(NF_DROP),
            };
            if dropped {
                return Ok(Some(format!(
                    "nftables chain {} in table {} {} drops forwarded packets from {}",
                    chain.name,
                    family.name(),
                    chain.table,
                    packet.from
                )));
            }
        }
    }
    Ok(None)
}

/// A foreign table.
struct Table<'a> {
    family: Family,
    name: &'a str,
}

impl Table<'_> {
    /// Returns the outcome for a packet in a chain.
    fn walk(&self, chain: &str, packet: &Packet, depth: usize) -> io::Result<Outcome> {
        if depth > DEPTH {
            return Ok(Outcome::Unknown);
        }
        for rule in self.rules(chain)? {
            let (matches, verdict) = rule.evaluate(packet, |set| self.keys(set))?;
            let outcome = match &verdict {
                _ if matches == Match::No => continue,
                rule::RuleVerdict::None => continue,
                rule::RuleVerdict::Return => Outcome::Undecided,
                rule::RuleVerdict::Unknown => Outcome::Unknown,
                rule::RuleVerdict::Accept => Outcome::Accepted,
                rule::RuleVerdict::Drop => Outcome::Dropped,
                rule::RuleVerdict::Jump(to) => match self.walk(to, packet, depth + 1)? {
                    Outcome::Undecided => continue,
                    outcome => outcome,
                },
                rule::RuleVerdict::Goto(to) => self.walk(to, packet, depth + 1)?,
            };
            match (matches, outcome) {
                (Match::Yes, outcome) => return Ok(outcome),
                // The packet may be dropped here, or continue.
                (_, Outcome::Dropped | Outcome::Undecided) => {}
                // The packet may be accepted.
                (_, outcome) => {
                    return Ok(if outcome == Outcome::Accepted { Outcome::Unknown } else { outcome });
                }
            }
        }
        Ok(Outcome::Undecided)
    }

    /// Lists the rules of one chain only: a table may have very many, for services.
    fn rules(&self, chain: &str) -> io::Result<Vec<ForeignRule>> {
        let bodies = list(self.family, NFT_MSG_GETRULE, |m| {
            m.text(NFTA_RULE_TABLE, self.name);
            m.text(NFTA_RULE_CHAIN, chain);
        })?;
        let is_of = |body: &&Vec<u8>, kind: u16, name: &str| {
            attribute(body, kind).map(text_of).as_deref() == Some(name)
        };
        let of_chain = bodies
            .iter()
            .filter(|body| is_of(body, NFTA_RULE_TABLE, self.name) && is_of(body, NFTA_RULE_CHAIN, chain));
        let parse =
            |body: &Vec<u8>| ForeignRule::parse(attribute(body, NFTA_RULE_EXPRESSIONS).unwrap_or_default());
        Ok(of_chain.map(parse).collect())
    }

    /// Lists the keys of a set.
    fn keys(&self, set: &str) -> io::Result<Vec<Vec<u8>>> {
        let bodies = list(self.family, NFT_MSG_GETSETELEM, |m| {
            m.text(NFTA_SET_ELEM_LIST_TABLE, self.name);
            m.text(NFTA_SET_ELEM_LIST_SET, set);
        })?;
        let elements = bodies
            .iter()
            .filter_map(|body| attribute(body, NFTA_SET_ELEM_LIST_ELEMENTS))
            .flat_map(attributes);
        let key = |element: &[u8]| {
            Some(attribute(attribute(element, NFTA_SET_ELEM_KEY)?, NFTA_DATA_VALUE)?.to_vec())
        };
        Ok(elements.filter_map(|(_, element)| key(element)).collect())
    }
}
