//! Elements of the table's sets and maps: what is an attachment's, with whose it is.

use std::collections::HashSet;
use std::fmt;
use std::io;

use rustix::io::Errno;

use super::expression::Verdict;
use super::message::{
    Attributes, Batch, CREATE, DELETE_ELEMENT, Family, GET_ELEMENT, NEW_ELEMENT, attribute, attributes, get,
    list, text_of,
};
use super::table::{Set, TABLE, all_sets};

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

    pub(super) fn of_data(data: &[u8]) -> Option<Self> {
        let (kind, length) = (data.first()?, usize::from(*data.get(1)?));
        let text = data.get(2..2 + length)?;
        (*kind == 0).then(|| Self::parse(&text_of(text)))?
    }
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

impl Element {
    pub(super) fn write(&self, batch: &mut Batch, kind: u16, owner: Option<&Comment>) {
        let flags = if kind == NEW_ELEMENT { CREATE } else { 0 };
        batch.message(kind, flags, |m| self.fill(m, owner));
    }

    fn fill(&self, message: &mut Attributes, owner: Option<&Comment>) {
        message.text(1, TABLE);
        message.text(2, self.set);
        message.nested(3, |list| {
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
    }

    /// A key is enough to find it.
    fn key_alone(&self) -> Self {
        Self { value: Value::None, ..self.clone() }
    }
}

/// An element as it is. One without a comment of ours is nobody's.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) element: Element,
    pub(super) owner: Option<Comment>,
}

/// The family of the table that a set is in.
fn family_of(set: &str) -> Option<Family> {
    all_sets().find(|(_, known)| known.name == set).map(|(family, _)| family)
}

/// The elements of a set.
pub(super) fn elements(family: Family, set: Set) -> io::Result<Vec<Held>> {
    let bodies = list(family, GET_ELEMENT, |m| {
        m.text(1, TABLE);
        m.text(2, set.name);
    })?;
    Ok(bodies.iter().flat_map(|body| elements_of(body, set.name)).collect())
}

/// The elements of one message.
fn elements_of<'a>(body: &'a [u8], set: &'static str) -> impl Iterator<Item = Held> + use<'a> {
    let elements = attribute(body, 3).into_iter().flat_map(attributes);
    elements.filter_map(move |(_, element)| {
        let key = attribute(attribute(element, 1)?, 1)?.to_vec();
        let owner = attribute(element, 6).and_then(Comment::of_data);
        let value = attribute(element, 2).and_then(|data| attribute(data, 1));
        let value = value.map_or(Value::None, |bytes| Value::Bytes(bytes.to_vec()));
        Some(Held { element: Element { set, key, value }, owner })
    })
}

/// Those of these elements that are there, by their keys. A look at each, however many others there are.
pub(super) fn find(wanted: &[Element]) -> io::Result<Vec<Held>> {
    let mut all = Vec::new();
    for family in [Family::Inet, Family::Bridge] {
        let of_family: Vec<&Element> =
            wanted.iter().filter(|element| family_of(element.set) == Some(family)).collect();
        let asked = of_family.iter().map(|element| {
            let mut body = Attributes::default();
            element.key_alone().fill(&mut body, None);
            body
        });
        let answers = get(family, GET_ELEMENT, &asked.collect::<Vec<_>>())?;
        for (element, body) in of_family.into_iter().zip(answers) {
            all.extend(body.and_then(|body| elements_of(&body, element.set).next()));
        }
    }
    Ok(all)
}

/// Whether there is an element with this key and value.
pub(super) fn has(wanted: &Element) -> io::Result<bool> {
    let same = |found: &Element| match (&found.value, &wanted.value) {
        (Value::Bytes(found), Value::Bytes(wanted)) => found == wanted,
        _ => true,
    };
    Ok(find(std::slice::from_ref(wanted))?.iter().any(|found| same(&found.element)))
}

/// Who else has one of these elements.
pub(super) fn holder_of(wanted: &[Element], owner: &Comment) -> io::Result<Option<Comment>> {
    let found = find(wanted)?;
    Ok(found.into_iter().find_map(|held| held.owner.filter(|holder| holder != owner)))
}

/// Takes away those of these elements that are an attachment's: one that is gone, or another's by now, is nothing to it.
pub(super) fn remove(elements: &[Element], owner: &Comment) -> io::Result<()> {
    /// Somebody flushes them meanwhile.
    const ATTEMPTS: usize = 3;
    for _attempt in 0..ATTEMPTS {
        let found = find(elements)?;
        let own = found.into_iter().filter(|held| held.owner.as_ref() == Some(owner));
        let own: Vec<Element> = own.map(|held| held.element.key_alone()).collect();
        let mut gone = false;
        for family in [Family::Inet, Family::Bridge] {
            let mut batch = Batch::new(family);
            let of_family = own.iter().filter(|element| family_of(element.set) == Some(family));
            of_family.for_each(|element| element.write(&mut batch, DELETE_ELEMENT, None));
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

/// Whose elements there are.
pub(super) fn owners() -> io::Result<HashSet<Comment>> {
    let mut owners = HashSet::new();
    for (family, set) in all_sets() {
        owners.extend(elements(family, set)?.into_iter().filter_map(|held| held.owner));
    }
    Ok(owners)
}

/// Takes elements away of some sets, whose owner is `gone`; whose they were. What they jump to stays for the next pod: a
/// chain that goes makes the kernel wait for every processor (RCU, 20 ms) before it takes the next change.
pub(super) fn remove_elements(
    is_in: impl Fn(&Set) -> bool,
    gone: impl Fn(&Comment) -> bool,
) -> io::Result<Vec<Comment>> {
    /// Somebody flushes them meanwhile.
    const ATTEMPTS: usize = 3;
    let mut owners: HashSet<Comment> = HashSet::new();
    for _attempt in 0..ATTEMPTS {
        let mut gone_already = false;
        for family in [Family::Inet, Family::Bridge] {
            let mut batch = Batch::new(family);
            for (_, set) in all_sets().filter(|(of, set)| *of == family && is_in(set)) {
                for Held { element, owner } in elements(family, set)? {
                    let Some(owner) = owner.filter(&gone) else { continue };
                    element.key_alone().write(&mut batch, DELETE_ELEMENT, None);
                    owners.insert(owner);
                }
            }
            match batch.send() {
                Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {
                    gone_already = true
                }
                sent => sent?,
            }
        }
        if !gone_already {
            break;
        }
    }
    Ok(owners.into_iter().collect())
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
