//! What others have in nftables: chains that stand in the way of pods' packets.

use std::io;

use super::message::{Family, GET_CHAIN, attribute, list, text_of};
use super::table::TABLE;

/// A chain of anybody.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) table: String,
    pub(super) name: String,
    /// Where it is hooked in (`NF_INET_*`).
    place: Option<u32>,
    /// What becomes of a packet that no rule decides on: 0 drops it.
    policy: Option<u32>,
}

/// A chain of somebody else's at a place in the packets' way that drops what no rule of it lets through.
pub(super) fn closing_chain(place: u32) -> io::Result<Option<String>> {
    for family in [Family::Inet, Family::Ip, Family::Ip6] {
        let closes =
            |chain: &Found| chain.table != TABLE && chain.place == Some(place) && chain.policy == Some(0);
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
        Some(Found {
            table: text_of(attribute(body, 1)?),
            name: text_of(attribute(body, 3)?),
            place: attribute(body, 4).and_then(|hook| attribute(hook, 1)).and_then(number),
            policy: attribute(body, 5).and_then(number),
        })
    });
    Ok(read.collect())
}
