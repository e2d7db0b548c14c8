//! The tables: installs and removes chains with their rules, sets and maps.

use std::collections::HashMap;
use std::io;

use rustix::io::Errno;

use super::chains::chains;
use super::comment::Comment;
use super::elements::{self, Element};
use super::expression::Expressions;
use super::message::{
    APPEND, Batch, CREATE, DELETE_CHAIN, DELETE_RULE, DELETE_TABLE, Family, GET_RULE, NEW_CHAIN, NEW_ELEMENT,
    NEW_RULE, NEW_SET, NEW_TABLE, generation, list,
};
use super::sets::{self, Set};
use super::{ChainRules, InstalledParts, TABLE};
use crate::attributes::{attribute, text_of};

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
            element.write(&mut batch, NEW_ELEMENT, Some(owner));
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
            batch.message(NEW_TABLE, CREATE, |m| m.text(1, TABLE));
        }
        for (place, set) in self.sets.iter().enumerate() {
            set.write(batch, u32::try_from(place + 1).unwrap_or(1));
        }
        for chain in &self.chains {
            chain.write(batch);
        }
        for chain in &self.chains {
            batch.message(DELETE_RULE, 0, |m| {
                m.text(1, TABLE);
                m.text(2, &chain.name);
            });
            for rule in &chain.rules {
                batch.message(NEW_RULE, CREATE | APPEND, |m| {
                    m.text(1, TABLE);
                    m.text(2, &chain.name);
                    m.bytes(4 | 0x8000, rule.as_attributes().as_bytes());
                });
            }
        }
    }
}

impl Set {
    fn write(&self, batch: &mut Batch, id: u32) {
        /// The flag of a set whose elements have data (`NFT_SET_MAP`).
        const MAP: u32 = 8;
        batch.message(NEW_SET, CREATE, |m| {
            m.text(1, TABLE);
            m.text(2, self.name);
            m.number(3, if self.value.is_some() { MAP } else { 0 });
            m.number(4, self.key.number);
            m.number(5, self.key.length);
            if let Some(value) = self.value {
                m.number(6, value.number);
                m.number(7, value.length);
            }
            m.number(10, id);
            if self.key.is_text() {
                // nft(8)'s own annotation of the byte order (`NFTNL_UDATA_SET_KEYBYTEORDER`): without it, nft shows
                // names backwards.
                const HOST_ENDIAN: u32 = 1;
                m.bytes(13, &[&[0, 4][..], &HOST_ENDIAN.to_ne_bytes()].concat());
            }
        });
    }
}

impl Chain {
    fn write(&self, batch: &mut Batch) {
        batch.message(NEW_CHAIN, CREATE, |m| {
            m.text(1, TABLE);
            m.text(3, &self.name);
            if let Some(hook) = self.hook {
                m.nested(4, |data| {
                    data.number(1, hook.place);
                    data.bytes(2, &hook.priority.to_be_bytes());
                });
                m.text(7, hook.kind);
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
        let bodies = list(family, GET_RULE, |m| m.text(1, TABLE))?;
        let mut counts: HashMap<String, usize> = HashMap::new();
        // Older kernels list the rules of all tables.
        let own = bodies.iter().filter(|body| attribute(body, 1).map(text_of).as_deref() == Some(TABLE));
        for chain in own.filter_map(|body| attribute(body, 2)) {
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
            batch.message(DELETE_TABLE, 0, |m| m.text(1, TABLE));
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
        batch.message(DELETE_CHAIN, 0, |m| {
            m.text(1, TABLE);
            m.text(3, &chain.name);
        });
        if batch.send().is_ok() {
            installed.clear();
        }
    }
    Ok(())
}
