//! The tables: installs and removes chains with their rules, sets and maps.

use std::collections::HashMap;
use std::io;

use netlink_packet_core::{NLA_F_NESTED, NLM_F_APPEND, NLM_F_CREATE};
use rustix::io::Errno;

use super::chains::chains;
use super::comment::Comment;
use super::elements::{self, Element};
use super::expression::Expressions;
use super::message::{Batch, Family, generation, list};
use super::sets::{self, Set};
use super::uapi::{
    NFT_MSG_DELCHAIN, NFT_MSG_DELRULE, NFT_MSG_DELTABLE, NFT_MSG_GETRULE, NFT_MSG_NEWCHAIN, NFT_MSG_NEWRULE,
    NFT_MSG_NEWSET, NFT_MSG_NEWSETELEM, NFT_MSG_NEWTABLE, NFT_SET_MAP, NFTA_CHAIN_HOOK, NFTA_CHAIN_NAME,
    NFTA_CHAIN_TABLE, NFTA_CHAIN_TYPE, NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY, NFTA_RULE_CHAIN,
    NFTA_RULE_EXPRESSIONS, NFTA_RULE_TABLE, NFTA_SET_DATA_LEN, NFTA_SET_DATA_TYPE, NFTA_SET_FLAGS,
    NFTA_SET_ID, NFTA_SET_KEY_LEN, NFTA_SET_KEY_TYPE, NFTA_SET_NAME, NFTA_SET_TABLE, NFTA_SET_USERDATA,
    NFTA_TABLE_NAME,
};
use super::{ChainRules, InstalledParts, TABLE};
use crate::netlink::attributes::{attribute, text_of};

/// The prefix of chains that only elements of a map jump to. They are removed when no element does.
pub(super) const JUMPED_TO: &str = "of-";

/// The hook of a chain (linux/netfilter.h, `NF_INET_*`) and its priority among the chains there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hook {
    pub(super) kind: &'static str,
    pub(super) place: u32,
    pub(super) priority: i32,
}

/// A chain with all its rules.
#[derive(Debug)]
pub(super) struct Chain {
    pub(super) name: String,
    pub(super) hook: Option<Hook>,
    pub(super) rules: Vec<Expressions>,
}

/// A part of the table that is installed as a whole.
#[derive(Debug)]
pub(super) struct TablePart {
    pub(super) name: String,
    pub(super) family: Family,
    pub(super) sets: Vec<Set>,
    pub(super) chains: Vec<Chain>,
}

/// Adds the elements of an attachment and the parts of the table that they need.
///
/// # Errors
/// `EEXIST` if another attachment has one of the elements.
pub(super) fn add(
    installed: &InstalledParts,
    parts: &[TablePart],
    elements: &[Element],
    owner: &Comment,
) -> io::Result<()> {
    let Some(family) = parts.first().map(|part| part.family) else { return Ok(()) };
    let batch = |all: bool| {
        let mut batch = Batch::new(family);
        let needed = parts.iter().filter(|part| all || !installed.has(&part.name));
        for (place, part) in needed.enumerate() {
            part.write(&mut batch, place == 0);
        }
        for element in elements {
            element.write(&mut batch, NFT_MSG_NEWSETELEM, Some(owner));
        }
        batch
    };
    let first = batch(false);
    let added = match first.send() {
        // The rules were flushed after their installation.
        Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => batch(true).send(),
        added => added,
    };
    added?;
    for part in parts {
        installed.insert(part);
    }
    Ok(())
}

impl TablePart {
    /// Writes the sets and chains. The rules replace the existing rules of the chains.
    fn write(&self, batch: &mut Batch, first: bool) {
        if first {
            batch.message(NFT_MSG_NEWTABLE, NLM_F_CREATE, |m| m.text(NFTA_TABLE_NAME, TABLE));
        }
        for (place, set) in self.sets.iter().enumerate() {
            set.write(batch, u32::try_from(place + 1).unwrap_or(1));
        }
        for chain in &self.chains {
            chain.write(batch);
        }
        for chain in &self.chains {
            batch.message(NFT_MSG_DELRULE, 0, |m| {
                m.text(NFTA_RULE_TABLE, TABLE);
                m.text(NFTA_RULE_CHAIN, &chain.name);
            });
            for rule in &chain.rules {
                batch.message(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, |m| {
                    m.text(NFTA_RULE_TABLE, TABLE);
                    m.text(NFTA_RULE_CHAIN, &chain.name);
                    m.bytes(NFTA_RULE_EXPRESSIONS | NLA_F_NESTED, rule.as_attributes().as_bytes());
                });
            }
        }
    }
}

impl Set {
    fn write(&self, batch: &mut Batch, id: u32) {
        batch.message(NFT_MSG_NEWSET, NLM_F_CREATE, |m| {
            m.text(NFTA_SET_TABLE, TABLE);
            m.text(NFTA_SET_NAME, self.name);
            m.number(NFTA_SET_FLAGS, if self.value.is_some() { NFT_SET_MAP } else { 0 });
            m.number(NFTA_SET_KEY_TYPE, self.key.number);
            m.number(NFTA_SET_KEY_LEN, self.key.length);
            if let Some(value) = self.value {
                m.number(NFTA_SET_DATA_TYPE, value.number);
                m.number(NFTA_SET_DATA_LEN, value.length);
            }
            m.number(NFTA_SET_ID, id);
            if self.key.is_text() {
                // nft(8)'s own annotation of the byte order (libnftnl's udata.h: type, length, value): without it, nft
                // shows names backwards.
                const NFTNL_UDATA_SET_KEYBYTEORDER: u8 = 0;
                const HOST_ENDIAN: [u8; 4] = 1_u32.to_ne_bytes();
                m.bytes(NFTA_SET_USERDATA, &[&[NFTNL_UDATA_SET_KEYBYTEORDER, 4][..], &HOST_ENDIAN].concat());
            }
        });
    }
}

impl Chain {
    fn write(&self, batch: &mut Batch) {
        batch.message(NFT_MSG_NEWCHAIN, NLM_F_CREATE, |m| {
            m.text(NFTA_CHAIN_TABLE, TABLE);
            m.text(NFTA_CHAIN_NAME, &self.name);
            if let Some(hook) = self.hook {
                m.nested(NFTA_CHAIN_HOOK, |data| {
                    data.number(NFTA_HOOK_HOOKNUM, hook.place);
                    data.bytes(NFTA_HOOK_PRIORITY, &hook.priority.to_be_bytes());
                });
                m.text(NFTA_CHAIN_TYPE, hook.kind);
            }
        });
    }
}

/// Whether chains have as many rules as were installed.
pub(super) fn has_rules(expected: &[ChainRules]) -> io::Result<bool> {
    for family in [Family::Inet, Family::Bridge] {
        let mut expected = expected.iter().filter(|rules| rules.family == family).peekable();
        if expected.peek().is_none() {
            continue;
        }
        let bodies = list(family, NFT_MSG_GETRULE, |m| m.text(NFTA_RULE_TABLE, TABLE))?;
        let mut counts: HashMap<String, usize> = HashMap::new();
        // Older kernels list the rules of all tables.
        let own = bodies
            .iter()
            .filter(|body| attribute(body, NFTA_RULE_TABLE).map(text_of).as_deref() == Some(TABLE));
        for chain in own.filter_map(|body| attribute(body, NFTA_RULE_CHAIN)) {
            *counts.entry(text_of(chain)).or_default() += 1;
        }
        if expected.any(|rules| counts.get(&rules.chain).copied().unwrap_or_default() != rules.count) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Removes the tables if they have no elements, and returns whether they are gone. The removal is atomic: if an element
/// is added concurrently, the kernel refuses it (`ERESTART`).
pub(super) fn remove_if_unused() -> io::Result<bool> {
    const ATTEMPTS: usize = 5;
    for _attempt in 0..ATTEMPTS {
        let generation = generation()?;
        for (family, set) in sets::all().filter(|(_, set)| set.name != sets::GUARD_BRIDGES.name) {
            if !elements::in_set(family, set)?.is_empty() {
                return Ok(false);
            }
        }
        let mut restart = false;
        for family in [Family::Inet, Family::Bridge] {
            // The removal of the first table increments the generation.
            let mut batch = match (family, table_exists(family)?) {
                (_, false) => continue,
                (Family::Inet, true) => Batch::since(family, generation),
                (_, true) => Batch::new(family),
            };
            batch.message(NFT_MSG_DELTABLE, 0, |m| m.text(NFTA_TABLE_NAME, TABLE));
            match batch.send() {
                Err(error) if error.raw_os_error() == Some(RESTART) => restart = true,
                Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {}
                sent => sent?,
            }
        }
        if !restart {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `ERESTART`, which the kernel reports to programs only here.
const RESTART: i32 = 85;

fn table_exists(family: Family) -> io::Result<bool> {
    Ok(chains(family)?.iter().any(|chain| chain.table == TABLE))
}

/// Removes the chains that only elements jump to, if no element does. The kernel refuses to remove chains that are in
/// use (`EBUSY`).
pub(super) fn remove_unused_chains(installed: &InstalledParts) -> io::Result<()> {
    for chain in chains(Family::Inet)? {
        if chain.table != TABLE || !chain.name.starts_with(JUMPED_TO) {
            continue;
        }
        let mut batch = Batch::new(Family::Inet);
        batch.message(NFT_MSG_DELCHAIN, 0, |m| {
            m.text(NFTA_CHAIN_TABLE, TABLE);
            m.text(NFTA_CHAIN_NAME, &chain.name);
        });
        if batch.send().is_ok() {
            installed.clear();
        }
    }
    Ok(())
}
