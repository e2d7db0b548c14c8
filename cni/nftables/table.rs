//! The table: its chains with their rules, its sets and maps, and the elements of attachments in them.

use std::collections::HashSet;
use std::fmt;
use std::io;

use rustix::io::Errno;

use super::Made;
use super::expression::{Expressions, Verdict};
use super::message::{
    APPEND, Batch, CREATE, DELETE_CHAIN, DELETE_ELEMENT, DELETE_RULE, DELETE_TABLE, Family, GET_CHAIN,
    GET_ELEMENT, NEW_CHAIN, NEW_ELEMENT, NEW_RULE, NEW_SET, NEW_TABLE, attribute, attributes, generation,
    list, text_of,
};

/// The tables' name.
pub(super) const TABLE: &str = "berth";

/// Chains that element of a map jumps to; they go when nothing does any more.
pub(super) const JUMPED_TO: &str = "of-";

/// Whose an element is: network, pod and interface. As a comment of nft(8) it is what an operator sees.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Comment {
    pub(crate) network: String,
    pub(crate) container: String,
    pub(crate) interface: String,
}

impl fmt::Display for Comment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.network, self.container, self.interface)
    }
}

impl Comment {
    pub(crate) fn new(network: &str, container: &str, interface: &str) -> Self {
        Self { network: network.to_owned(), container: container.to_owned(), interface: interface.to_owned() }
    }

    fn parse(text: &str) -> Option<Self> {
        // None of the three can have a space.
        let mut words = text.split(' ');
        Some(Self::new(words.next()?, words.next()?, words.next()?))
    }

    /// As data of an element that the kernel keeps for its user: type, length, text (libnftnl's `udata.h`: type 0 is
    /// a comment).
    fn to_data(&self) -> Vec<u8> {
        let mut text = self.to_string().into_bytes();
        text.truncate(254);
        text.push(0);
        let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
        [vec![0, length], text].concat()
    }

    fn of_data(data: &[u8]) -> Option<Self> {
        let (kind, length) = (data.first()?, usize::from(*data.get(1)?));
        let text = data.get(2..2 + length)?;
        (*kind == 0).then(|| Self::parse(&text_of(text)))?
    }
}

/// Where in a packet's way a chain is (linux/netfilter.h, `NF_INET_*`), and when among others there.
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

/// What elements of a set are, as nft(8) shows them (`TYPE_*` of its datatype.h; a value of several parts has six bits for
/// each), and how long they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Type {
    number: u32,
    length: u32,
}

impl Type {
    pub(super) const IPV4: Self = Self { number: 7, length: 4 };
    pub(super) const IPV6: Self = Self { number: 8, length: 16 };
    pub(super) const MAC: Self = Self { number: 9, length: 8 };
    pub(super) const PROTOCOL: Self = Self { number: 12, length: 4 };
    pub(super) const PORT: Self = Self { number: 13, length: 4 };
    pub(super) const LINK: Self = Self { number: 41, length: 16 };
    /// `NFT_DATA_VERDICT`.
    pub(super) const VERDICT: Self = Self { number: 0xffff_ff00, length: 0 };

    fn is_text(self) -> bool {
        self.number == Self::LINK.number
    }

    pub(super) const fn with(self, other: Self) -> Self {
        Self { number: (self.number << 6) | other.number, length: self.length + other.length }
    }
}

/// A set, or a map.
#[derive(Clone, Copy, Debug)]
pub(super) struct Set {
    pub(super) name: &'static str,
    pub(super) key: Type,
    pub(super) value: Option<Type>,
}

/// A part of the table, made as a whole.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) family: Family,
    pub(super) sets: Vec<Set>,
    pub(super) chains: Vec<Chain>,
}

/// The value of an element.
#[derive(Clone, Debug)]
pub(super) enum Value {
    None,
    Bytes(Vec<u8>),
    Jump(String),
}

/// An element of an attachment.
#[derive(Clone, Debug)]
pub(super) struct Element {
    pub(super) set: &'static str,
    pub(super) key: Vec<u8>,
    pub(super) value: Value,
}

/// Parts of a key or value, each padded to a register.
pub(super) fn joined(parts: &[&[u8]]) -> Vec<u8> {
    let mut all = Vec::new();
    for part in parts {
        all.extend_from_slice(part);
        all.resize(all.len().next_multiple_of(4), 0);
    }
    all
}

/// Adds the elements of an attachment, with the parts of the table that they need.
///
/// # Errors
/// `EBUSY` or `EEXIST` where another attachment has one of them.
pub(super) fn add(made: &Made, parts: &[Part], elements: &[Element], owner: &Comment) -> io::Result<()> {
    let Some(family) = parts.first().map(|part| part.family) else { return Ok(()) };
    let batch = |all: bool| {
        let mut batch = Batch::new(family);
        let needed = parts.iter().filter(|part| all || !made.has(&part.name));
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
        // Somebody has flushed the rules since they were made.
        Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => batch(true).send(),
        added => added,
    };
    added?;
    for part in parts {
        made.insert(part.name.clone());
    }
    Ok(())
}

impl Part {
    /// The chains' rules are put in the place of those that they have.
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
        /// `NFT_SET_MAP`.
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
                // As nft(8) notes it for itself (`NFTNL_UDATA_SET_KEYBYTEORDER`): else it shows names backwards.
                const OF_THE_HOST: u32 = 1;
                m.bytes(13, &[&[0, 4][..], &OF_THE_HOST.to_ne_bytes()].concat());
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

impl Element {
    fn write(&self, batch: &mut Batch, kind: u16, owner: Option<&Comment>) {
        let flags = if kind == NEW_ELEMENT { CREATE } else { 0 };
        batch.message(kind, flags, |m| {
            m.text(1, TABLE);
            m.text(2, self.set);
            m.nested(3, |list| {
                list.nested(1, |element| {
                    element.nested(1, |key| key.bytes(1, &self.key));
                    match &self.value {
                        Value::None => {}
                        Value::Bytes(bytes) => element.nested(2, |data| data.bytes(1, bytes)),
                        Value::Jump(chain) => element.nested(2, |data| Verdict::Jump(chain).write(data)),
                    }
                    if let Some(owner) = owner {
                        element.bytes(6, &owner.to_data());
                    }
                });
            });
        });
    }
}

/// The sets and maps of all parts, by family.
fn all_sets() -> impl Iterator<Item = (Family, Set)> {
    let inet = super::masquerade::SETS.iter().chain(&super::ports::SETS).chain(&super::guard::SETS);
    let inet = inet.map(|set| (Family::Inet, *set));
    inet.chain(super::spoof::SETS.iter().map(|set| (Family::Bridge, *set)))
}

/// The elements of a set, with whose they are. One without a comment of ours is nobody's.
fn elements(family: Family, set: Set) -> io::Result<Vec<(Element, Option<Comment>)>> {
    let bodies = list(family, GET_ELEMENT, |m| {
        m.text(1, TABLE);
        m.text(2, set.name);
    })?;
    let lists = bodies.iter().filter_map(|body| attribute(body, 3));
    let elements = lists.flat_map(|list| attributes(list).map(|(_, element)| element));
    let read = elements.filter_map(|element| {
        let key = attribute(attribute(element, 1)?, 1)?.to_vec();
        let comment = attribute(element, 6).and_then(Comment::of_data);
        let value = attribute(element, 2).and_then(|data| attribute(data, 1));
        let value = value.map_or(Value::None, |bytes| Value::Bytes(bytes.to_vec()));
        Some((Element { set: set.name, key, value }, comment))
    });
    Ok(read.collect())
}

/// Whether a set has an element with this key and value.
pub(super) fn has(family: Family, wanted: &Element) -> io::Result<bool> {
    let Some((_, set)) = all_sets().find(|(_, set)| set.name == wanted.set) else { return Ok(false) };
    let same = |found: &Element| match (&found.value, &wanted.value) {
        (Value::Bytes(found), Value::Bytes(wanted)) => found == wanted,
        _ => true,
    };
    Ok(elements(family, set)?.iter().any(|(found, _)| found.key == wanted.key && same(found)))
}

/// Whose elements there are.
pub(super) fn owners() -> io::Result<HashSet<Comment>> {
    let mut owners = HashSet::new();
    for (family, set) in all_sets() {
        owners.extend(elements(family, set)?.into_iter().filter_map(|(_, owner)| owner));
    }
    Ok(owners)
}

/// Takes elements away of some sets, whose owner is `gone`; whose they were. What they jump to stays for the next pod: a
/// chain that goes makes the kernel wait for every processor (RCU, 20 ms) before it takes the next change.
pub(super) fn remove_elements(
    is_in: impl Fn(&Set) -> bool,
    gone: impl Fn(&Comment) -> bool,
) -> io::Result<Vec<Comment>> {
    let mut owners: Vec<Comment> = Vec::new();
    for family in [Family::Inet, Family::Bridge] {
        let mut batch = Batch::new(family);
        for (_, set) in all_sets().filter(|(of, set)| *of == family && is_in(set)) {
            for (element, comment) in elements(family, set)? {
                let Some(comment) = comment.filter(&gone) else { continue };
                // A key is enough to find it.
                let element = Element { value: Value::None, ..element };
                element.write(&mut batch, DELETE_ELEMENT, None);
                if !owners.contains(&comment) {
                    owners.push(comment);
                }
            }
        }
        if batch.is_empty() {
            continue;
        }
        match batch.send() {
            // Somebody has flushed them meanwhile.
            Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {}
            sent => sent?,
        }
    }
    Ok(owners)
}

/// Takes the tables away if they have no elements; whether they are gone. Atomic: an element that is added meanwhile makes
/// the kernel refuse it (`ERESTART`).
pub(super) fn remove_if_unused() -> io::Result<bool> {
    const ATTEMPTS: usize = 5;
    for _attempt in 0..ATTEMPTS {
        let generation = generation()?;
        for (family, set) in all_sets().filter(|(_, set)| set.name != super::guard::BRIDGES.name) {
            if !elements(family, set)?.is_empty() {
                return Ok(false);
            }
        }
        let mut restart = false;
        for family in [Family::Inet, Family::Bridge] {
            // The generation is one more after the first of the two.
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

/// `ERESTART`, which never leaves the kernel but here.
const RESTART: i32 = 85;

fn table_exists(family: Family) -> io::Result<bool> {
    Ok(chains(family)?.iter().any(|chain| chain.table == TABLE))
}

/// A chain of anybody.
#[derive(Debug)]
struct Found {
    table: String,
    name: String,
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
fn chains(family: Family) -> io::Result<Vec<Found>> {
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

/// Takes away the chains that only elements jump to and that none does any more. The kernel refuses those that are in
/// use (`EBUSY`).
pub(super) fn remove_unused_chains(made: &Made) -> io::Result<()> {
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
            made.clear();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_read_as_it_is_written() {
        let owner = Comment::new("pods", &"ab".repeat(32), "eth0");
        assert_eq!(Comment::of_data(&owner.to_data()), Some(owner));
        for data in [&[][..], &[0], &[0, 9, 1], &[1, 2, b'a', 0]] {
            assert_eq!(Comment::of_data(data), None);
        }
    }
}
