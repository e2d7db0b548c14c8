//! The comments that name the owners of elements.

use std::fmt;

use crate::netlink::attributes::text_of;

/// The owner of an element: network, pod and interface. nft(8) shows it as the element's comment.
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
        // None of the three parts can contain a space.
        let mut words = text.split(' ');
        Some(Self::new(words.next()?, words.next()?, words.next()?))
    }

    /// Encodes the comment as user data of an element: type, length, text (libnftnl's `udata.h`: type 0 is a comment).
    pub(super) fn to_data(&self) -> Vec<u8> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_survives_a_round_trip() {
        let owner = Comment::new("pods", &"ab".repeat(32), "eth0");
        assert_eq!(Comment::of_data(&owner.to_data()), Some(owner));
        for data in [&[][..], &[0], &[0, 9, 1], &[1, 2, b'a', 0]] {
            assert_eq!(Comment::of_data(data), None);
        }
    }
}
