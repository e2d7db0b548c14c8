//! What others have in nftables, and whether it stands in the way of pods' packets: docker closes the host's forwarding
//! with iptables, firewalld and administrators do with nftables. A rule of berth's own table can forbid, not permit what
//! another table forbids.
//!
//! * this file: the chains of others, and a packet's way through them; [`rule`]: what a rule says to a packet; [`legacy`]: the
//!   rules of an iptables that does not use nftables

mod legacy;
mod rule;

use std::io;

use ipnet::IpNet;

use super::message::{Family, GET_CHAIN, GET_ELEMENT, GET_RULE, attribute, list, text_of};
use super::table::TABLE;
use rule::{Answer, End, Rule};

/// `NF_INET_FORWARD`.
const FORWARD: u32 = 2;

/// How deep chains may lead into one another (`NFT_JUMP_STACK_SIZE` of the kernel).
const DEPTH: usize = 16;

/// A chain of anybody.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) table: String,
    pub(super) name: String,
    /// Where it is hooked in (`NF_INET_*`), and when among others there.
    hook: Option<(u32, i32)>,
    /// What becomes of a packet that no rule decides on: 0 drops it.
    policy: Option<u32>,
}

/// A chain of somebody else's at a place in the packets' way that drops what no rule of it lets through.
pub(super) fn closing_chain(place: u32) -> io::Result<Option<String>> {
    for family in [Family::Inet, Family::Ip, Family::Ip6] {
        let closes = |chain: &Found| {
            chain.table != TABLE && chain.hook.is_some_and(|(at, _)| at == place) && chain.policy == Some(0)
        };
        if let Some(chain) = chains(family)?.into_iter().find(closes) {
            return Ok(Some(format!("chain {} of table {}", chain.name, chain.table)));
        }
    }
    Ok(None)
}

/// The chains of a family.
pub(super) fn chains(family: Family) -> io::Result<Vec<Found>> {
    let bodies = list(family, GET_CHAIN, |_| {})?;
    let number = |value: &[u8]| value.try_into().ok().map(u32::from_be_bytes);
    let read = bodies.iter().filter_map(|body| {
        let hook = attribute(body, 4).and_then(|hook| {
            let at = attribute(hook, 1).and_then(number)?;
            Some((at, attribute(hook, 2).and_then(number).map_or(0, u32::cast_signed)))
        });
        Some(Found {
            table: text_of(attribute(body, 1)?),
            name: text_of(attribute(body, 3)?),
            hook,
            policy: attribute(body, 5).and_then(number),
        })
    });
    Ok(read.collect())
}

/// The first packet of a connection from a pod to another host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    /// The link of the host that it comes by.
    pub(crate) by: String,
    /// Where it comes from.
    pub(crate) from: IpNet,
}

/// What of somebody else's drops such a packet for certain. Where that depends on what is not known here, it is not said.
pub(crate) fn obstacle(packet: &Packet) -> io::Result<Option<String>> {
    Ok(in_nftables(packet)?.or_else(|| legacy::obstacle(packet)))
}

fn in_nftables(packet: &Packet) -> io::Result<Option<String>> {
    let own = if packet.from.addr().is_ipv4() { Family::Ip } else { Family::Ip6 };
    for family in [Family::Inet, own] {
        let all = chains(family)?;
        let forwards =
            |chain: &&Found| chain.hook.is_some_and(|(at, _)| at == FORWARD) && chain.table != TABLE;
        for chain in all.iter().filter(forwards) {
            let table = Table { family, name: &chain.table };
            let end = table.walk(&chain.name, packet, 0)?;
            let dropped = match end {
                End::Dropped => true,
                End::Open | End::Accepted => false,
                End::Through => chain.policy == Some(0),
            };
            if dropped {
                return Ok(Some(format!(
                    "nftables chain {} in table {} {} drops forwarded packets from {}",
                    chain.name,
                    family.word(),
                    chain.table,
                    packet.from
                )));
            }
        }
    }
    Ok(None)
}

/// A table of somebody else's.
struct Table<'a> {
    family: Family,
    name: &'a str,
}

impl Table<'_> {
    /// What becomes of a packet in a chain.
    fn walk(&self, chain: &str, packet: &Packet, depth: usize) -> io::Result<End> {
        if depth > DEPTH {
            return Ok(End::Open);
        }
        for rule in self.rules(chain)? {
            let (answer, verdict) = rule.ask(packet, |set| self.keys(set))?;
            let end = match &verdict {
                _ if answer == Answer::No => continue,
                rule::Verdict::None => continue,
                rule::Verdict::Return => End::Through,
                rule::Verdict::Unknown => End::Open,
                rule::Verdict::Accept => End::Accepted,
                rule::Verdict::Drop => End::Dropped,
                rule::Verdict::Jump(to) => match self.walk(to, packet, depth + 1)? {
                    End::Through => continue,
                    end => end,
                },
                rule::Verdict::Goto(to) => self.walk(to, packet, depth + 1)?,
            };
            match (answer, end) {
                (Answer::Yes, end) => return Ok(end),
                // It may be dropped here, or go on.
                (_, End::Dropped | End::Through) => {}
                // It may pass.
                (_, end) => return Ok(if end == End::Accepted { End::Open } else { end }),
            }
        }
        Ok(End::Through)
    }

    /// The rules of a chain, no others: a table may have very many, for services.
    fn rules(&self, chain: &str) -> io::Result<Vec<Rule>> {
        let bodies = list(self.family, GET_RULE, |m| {
            m.text(1, self.name);
            m.text(2, chain);
        })?;
        let is_of = |body: &&Vec<u8>, kind: u16, name: &str| {
            attribute(body, kind).map(text_of).as_deref() == Some(name)
        };
        let own = bodies.iter().filter(|body| is_of(body, 1, self.name) && is_of(body, 2, chain));
        Ok(own.map(|body| Rule::read(attribute(body, 4).unwrap_or_default())).collect())
    }

    /// The keys of a set.
    fn keys(&self, set: &str) -> io::Result<Vec<Vec<u8>>> {
        let bodies = list(self.family, GET_ELEMENT, |m| {
            m.text(1, self.name);
            m.text(2, set);
        })?;
        let elements =
            bodies.iter().filter_map(|body| attribute(body, 3)).flat_map(super::message::attributes);
        Ok(elements.filter_map(|(_, element)| Some(attribute(attribute(element, 1)?, 1)?.to_vec())).collect())
    }
}
