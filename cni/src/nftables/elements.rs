//! Elements of the table's sets and maps. Each belongs to an attachment, which its comment names.

use std::collections::HashSet;
use std::io;

use netlink_packet_core::NLM_F_CREATE;
use rustix::io::Errno;

use super::TABLE;
use super::comment::Comment;
use super::expression::Verdict;
use super::message::{Batch, Family, get, list};
use super::sets::{self, Set};
use super::uapi::{
    NFT_MSG_DELSETELEM, NFT_MSG_GETSETELEM, NFT_MSG_NEWSETELEM, NFTA_DATA_VALUE, NFTA_LIST_ELEM,
    NFTA_SET_ELEM_DATA, NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_SET_ELEM_LIST_SET,
    NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_ELEM_USERDATA,
};
use crate::netlink::attributes::{Attributes, attribute, attributes};

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

/// Concatenates the parts of a key or value, each padded to a register.
pub(super) fn joined(parts: &[&[u8]]) -> Vec<u8> {
    let mut all = Vec::new();
    for part in parts {
        all.extend_from_slice(part);
        all.resize(all.len().next_multiple_of(4), 0);
    }
    all
}

impl Element {
    pub(super) fn write(&self, batch: &mut Batch, kind: u16, owner: Option<&Comment>) {
        let flags = if kind == NFT_MSG_NEWSETELEM { NLM_F_CREATE } else { 0 };
        batch.message(kind, flags, |m| self.fill(m, owner));
    }

    fn fill(&self, message: &mut Attributes, owner: Option<&Comment>) {
        message.text(NFTA_SET_ELEM_LIST_TABLE, TABLE);
        message.text(NFTA_SET_ELEM_LIST_SET, self.set);
        message.nested(NFTA_SET_ELEM_LIST_ELEMENTS, |list| {
            list.nested(NFTA_LIST_ELEM, |element| {
                element.nested(NFTA_SET_ELEM_KEY, |key| key.bytes(NFTA_DATA_VALUE, &self.key));
                match &self.value {
                    Value::None => {}
                    Value::Bytes(bytes) => {
                        element.nested(NFTA_SET_ELEM_DATA, |data| data.bytes(NFTA_DATA_VALUE, bytes));
                    }
                    Value::Jump(chain) => {
                        element.nested(NFTA_SET_ELEM_DATA, |data| Verdict::Jump(chain).write(data));
                    }
                }
                if let Some(owner) = owner {
                    element.bytes(NFTA_SET_ELEM_USERDATA, &owner.to_data());
                }
            });
        });
    }

    /// The element without its value: the key identifies it.
    fn key_alone(&self) -> Self {
        Self { value: Value::None, ..self.clone() }
    }
}

/// An installed element. An element without a comment of berth has no owner.
#[derive(Clone, Debug)]
pub(super) struct OwnedElement {
    pub(super) element: Element,
    pub(super) owner: Option<Comment>,
}

/// Returns the family of the table that contains a set.
fn family_of(set: &str) -> Option<Family> {
    sets::all().find(|(_, candidate)| candidate.name == set).map(|(family, _)| family)
}

/// Lists the elements of a set.
pub(super) fn in_set(family: Family, set: Set) -> io::Result<Vec<OwnedElement>> {
    let bodies = list(family, NFT_MSG_GETSETELEM, |m| {
        m.text(NFTA_SET_ELEM_LIST_TABLE, TABLE);
        m.text(NFTA_SET_ELEM_LIST_SET, set.name);
    })?;
    Ok(bodies.iter().flat_map(|body| elements_of(body, set.name)).collect())
}

/// Parses the elements of one message.
fn elements_of<'a>(body: &'a [u8], set: &'static str) -> impl Iterator<Item = OwnedElement> + use<'a> {
    let elements = attribute(body, NFTA_SET_ELEM_LIST_ELEMENTS).into_iter().flat_map(attributes);
    elements.filter_map(move |(_, element)| {
        let key = attribute(attribute(element, NFTA_SET_ELEM_KEY)?, NFTA_DATA_VALUE)?.to_vec();
        let owner = attribute(element, NFTA_SET_ELEM_USERDATA).and_then(Comment::of_data);
        let value = attribute(element, NFTA_SET_ELEM_DATA).and_then(|data| attribute(data, NFTA_DATA_VALUE));
        let value = value.map_or(Value::None, |bytes| Value::Bytes(bytes.to_vec()));
        Some(OwnedElement { element: Element { set, key, value }, owner })
    })
}

/// Returns those of these elements that are installed, by their keys. One lookup each, however many elements there are.
pub(super) fn find(elements: &[Element]) -> io::Result<Vec<OwnedElement>> {
    let mut all = Vec::new();
    for family in [Family::Inet, Family::Bridge] {
        let of_family: Vec<&Element> =
            elements.iter().filter(|element| family_of(element.set) == Some(family)).collect();
        let keys = of_family.iter().map(|element| {
            let mut body = Attributes::default();
            element.key_alone().fill(&mut body, None);
            body
        });
        let answers = get(family, NFT_MSG_GETSETELEM, &keys.collect::<Vec<_>>())?;
        for (element, body) in of_family.into_iter().zip(answers) {
            all.extend(body.and_then(|body| elements_of(&body, element.set).next()));
        }
    }
    Ok(all)
}

/// Whether an element with this key and value is installed.
pub(super) fn has(element: &Element) -> io::Result<bool> {
    let same = |installed: &Element| match (&installed.value, &element.value) {
        (Value::Bytes(installed), Value::Bytes(expected)) => installed == expected,
        _ => true,
    };
    Ok(find(std::slice::from_ref(element))?.iter().any(|installed| same(&installed.element)))
}

/// Returns another owner of one of these elements, if there is one.
pub(super) fn holder_of(elements: &[Element], owner: &Comment) -> io::Result<Option<Comment>> {
    let installed = find(elements)?;
    Ok(installed.into_iter().find_map(|element| element.owner.filter(|holder| holder != owner)))
}

/// Removes those of these elements that belong to an attachment. Elements that are gone or belong to another attachment
/// are skipped.
pub(super) fn remove(elements: &[Element], owner: &Comment) -> io::Result<()> {
    /// Another program may flush the set concurrently.
    const ATTEMPTS: usize = 3;
    for _attempt in 0..ATTEMPTS {
        let installed = find(elements)?;
        let own = installed.into_iter().filter(|element| element.owner.as_ref() == Some(owner));
        let own: Vec<Element> = own.map(|owned| owned.element.key_alone()).collect();
        let mut gone = false;
        for family in [Family::Inet, Family::Bridge] {
            let mut batch = Batch::new(family);
            let of_family = own.iter().filter(|element| family_of(element.set) == Some(family));
            of_family.for_each(|element| element.write(&mut batch, NFT_MSG_DELSETELEM, None));
            match batch.send() {
                Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => gone = true,
                sent => sent?,
            }
        }
        if !gone {
            break;
        }
    }
    Ok(())
}

/// Returns the owners of all elements.
pub(super) fn owners() -> io::Result<HashSet<Comment>> {
    let mut owners = HashSet::new();
    for (family, set) in sets::all() {
        owners.extend(in_set(family, set)?.into_iter().filter_map(|element| element.owner));
    }
    Ok(owners)
}

/// Removes the elements of the selected sets whose owner fulfils `gone`, and returns the owners. The chains that they
/// jump to stay for the next pod: after the removal of a chain, the kernel waits for every processor (RCU, 20 ms)
/// before it accepts the next change.
pub(super) fn remove_elements(
    is_in: impl Fn(&Set) -> bool,
    gone: impl Fn(&Comment) -> bool,
) -> io::Result<Vec<Comment>> {
    /// Another program may flush the set concurrently.
    const ATTEMPTS: usize = 3;
    let mut owners: HashSet<Comment> = HashSet::new();
    for _attempt in 0..ATTEMPTS {
        let mut flushed = false;
        for family in [Family::Inet, Family::Bridge] {
            let mut batch = Batch::new(family);
            for (_, set) in sets::all().filter(|(of, set)| *of == family && is_in(set)) {
                for OwnedElement { element, owner } in in_set(family, set)? {
                    let Some(owner) = owner.filter(&gone) else { continue };
                    element.key_alone().write(&mut batch, NFT_MSG_DELSETELEM, None);
                    owners.insert(owner);
                }
            }
            match batch.send() {
                Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => flushed = true,
                sent => sent?,
            }
        }
        if !flushed {
            break;
        }
    }
    Ok(owners.into_iter().collect())
}
