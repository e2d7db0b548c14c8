//! Netlink attributes (netlink(7)): the encoding that all netlink families share.

use netlink_packet_core::{NLA_F_NESTED, NLA_TYPE_MASK};

/// Netlink attributes: length, type, value, padded to four bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attributes {
    buffer: Vec<u8>,
}

impl Attributes {
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.buffer.extend_from_slice(&length.to_ne_bytes());
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer.extend_from_slice(value);
        self.buffer.resize(self.buffer.len().next_multiple_of(4), 0);
    }

    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        let mut terminated = value.as_bytes().to_vec();
        terminated.push(0);
        self.bytes(kind, &terminated);
    }

    /// Appends a number. nf_tables uses big-endian numbers.
    pub(crate) fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(crate) fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        fill(&mut inner);
        self.bytes(kind | NLA_F_NESTED, &inner.buffer);
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.buffer
    }
}

/// Iterates over the attributes in a buffer: the type without flags, and the value.
pub(crate) fn attributes(mut buffer: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(buffer.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(buffer.get(2..4)?.try_into().ok()?) & NLA_TYPE_MASK;
        let value = buffer.get(4..length)?;
        buffer = buffer.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// Returns the value of the first attribute of a type.
pub(crate) fn attribute(buffer: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(buffer).find(|(candidate, _)| *candidate == kind).map(|(_, value)| value)
}

/// Returns the text before the terminating zero.
pub(crate) fn text_of(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_survive_a_round_trip() {
        let mut all = Attributes::default();
        all.text(1, "abc");
        all.nested(2, |inner| inner.number(7, 5));
        all.bytes(3, &[9]);
        let read: Vec<_> = attributes(all.as_bytes()).collect();
        assert_eq!(read.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(text_of(read[0].1), "abc");
        assert_eq!(attribute(read[1].1, 7), Some(&[0, 0, 0, 5][..]));
        assert_eq!(read[2].1, [9]);
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(bytes: Vec<u8>) {
            let _all = attributes(&bytes).count();
        }
    }
}
