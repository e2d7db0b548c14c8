//! The messages of a received datagram (netlink(7)).

use netlink_packet_core::{NLMSG_ERROR, NetlinkHeader};

/// The length of `struct nlmsghdr`.
pub(super) const HEADER_LENGTH: usize = 16;

/// One message of a datagram.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawMessage<'a> {
    pub(crate) header: NetlinkHeader,
    /// The message with its header.
    pub(super) whole: &'a [u8],
    /// The message after its header.
    pub(crate) body: &'a [u8],
}

impl RawMessage<'_> {
    /// The code of an `NLMSG_ERROR`, 0 for success; `None` for other messages.
    pub(crate) fn error(&self) -> Option<i32> {
        self.code().filter(|_| self.header.message_type == NLMSG_ERROR)
    }

    /// The code of an `NLMSG_ERROR` or `NLMSG_DONE`.
    pub(super) fn code(&self) -> Option<i32> {
        self.body.get(..4)?.try_into().ok().map(i32::from_ne_bytes)
    }
}

/// Iterates over the messages of a datagram, up to the first truncated one.
pub(crate) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = RawMessage<'_>> {
    std::iter::from_fn(move || {
        let header = header(datagram)?;
        let length = usize::try_from(header.length).ok()?;
        let (whole, body) = (datagram.get(..length)?, datagram.get(HEADER_LENGTH..length)?);
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(RawMessage { header, whole, body })
    })
}

/// Parses `struct nlmsghdr`.
fn header(buffer: &[u8]) -> Option<NetlinkHeader> {
    let word = |at: usize| Some(u32::from_ne_bytes(buffer.get(at..at + 4)?.try_into().ok()?));
    let half = |at: usize| Some(u16::from_ne_bytes(buffer.get(at..at + 2)?.try_into().ok()?));
    let mut header = NetlinkHeader::default();
    header.length = word(0)?;
    header.message_type = half(4)?;
    header.flags = half(6)?;
    header.sequence_number = word(8)?;
    header.port_number = word(12)?;
    Some(header)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answer(code: i32) -> Vec<u8> {
        let mut message = 20_u32.to_ne_bytes().to_vec();
        message.extend(NLMSG_ERROR.to_ne_bytes());
        message.extend([0; 10]);
        message.extend(code.to_ne_bytes());
        message
    }

    proptest! {
        #[test]
        fn messages_are_read_up_to_a_truncation(
            codes in proptest::collection::vec(-133_i32..=0, 0..6),
            length: usize,
        ) {
            let answers: Vec<u8> = codes.iter().flat_map(|code| answer(*code)).collect();
            let received = &answers[..length % (answers.len() + 1)];
            let complete = received.len() / answer(0).len();
            let read: Vec<_> = messages(received).map(|message| message.error()).collect();
            let expected: Vec<_> = codes[..complete].iter().copied().map(Some).collect();
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn arbitrary_bytes_have_no_more_messages_than_headers(bytes: Vec<u8>) {
            prop_assert!(messages(&bytes).count() <= bytes.len() / HEADER_LENGTH);
        }
    }
}
