//! The chains that are installed on the host, of any program.

use std::io;

use super::message::{Family, GET_CHAIN, list};
use crate::attributes::{attribute, text_of};

/// A chain of any program.
#[derive(Clone, Debug)]
pub(super) struct InstalledChain {
    pub(super) table: String,
    pub(super) name: String,
    /// The hook (`NF_INET_*`) and the priority, of a base chain.
    pub(super) hook: Option<(u32, i32)>,
    /// The verdict on packets that no rule decides: 0 is drop.
    pub(super) policy: Option<u32>,
}

/// Lists the chains of a family.
pub(super) fn chains(family: Family) -> io::Result<Vec<InstalledChain>> {
    let bodies = list(family, GET_CHAIN, |_| {})?;
    let number = |value: &[u8]| value.try_into().ok().map(u32::from_be_bytes);
    let parsed = bodies.iter().filter_map(|body| {
        let hook = attribute(body, 4).and_then(|hook| {
            let at = attribute(hook, 1).and_then(number)?;
            Some((at, attribute(hook, 2).and_then(number).map_or(0, u32::cast_signed)))
        });
        Some(InstalledChain {
            table: text_of(attribute(body, 1)?),
            name: text_of(attribute(body, 3)?),
            hook,
            policy: attribute(body, 5).and_then(number),
        })
    });
    Ok(parsed.collect())
}
