//! The chains that are installed on the host, of any program.

use std::io;

use super::message::{Family, list};
use super::uapi::{
    NFT_MSG_GETCHAIN, NFTA_CHAIN_HOOK, NFTA_CHAIN_NAME, NFTA_CHAIN_POLICY, NFTA_CHAIN_TABLE,
    NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY,
};
use crate::netlink::attributes::{attribute, text_of};

/// A chain of any program.
#[derive(Clone, Debug)]
pub(super) struct InstalledChain {
    pub(super) table: String,
    pub(super) name: String,
    /// The hook (`NF_INET_*`) and the priority, of a base chain.
    pub(super) hook: Option<(u32, i32)>,
    /// The verdict on packets that no rule decides (`NF_ACCEPT`, `NF_DROP`).
    pub(super) policy: Option<i32>,
}

/// Lists the chains of a family.
pub(super) fn chains(family: Family) -> io::Result<Vec<InstalledChain>> {
    let bodies = list(family, NFT_MSG_GETCHAIN, |_| {})?;
    let number = |value: &[u8]| value.try_into().ok().map(u32::from_be_bytes);
    let parsed = bodies.iter().filter_map(|body| {
        let hook = attribute(body, NFTA_CHAIN_HOOK).and_then(|hook| {
            let at = attribute(hook, NFTA_HOOK_HOOKNUM).and_then(number)?;
            let priority = attribute(hook, NFTA_HOOK_PRIORITY).and_then(number);
            Some((at, priority.map_or(0, u32::cast_signed)))
        });
        Some(InstalledChain {
            table: text_of(attribute(body, NFTA_CHAIN_TABLE)?),
            name: text_of(attribute(body, NFTA_CHAIN_NAME)?),
            hook,
            policy: attribute(body, NFTA_CHAIN_POLICY).and_then(number).map(u32::cast_signed),
        })
    });
    Ok(parsed.collect())
}
