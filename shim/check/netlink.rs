//! A minimal netlink client for the checks: one request and its acknowledgements (netlink(7)).

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, recv, sendto, socket};

const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
/// The length of a message header: length, type, flags, sequence, port.
const HEADER: usize = 16;

/// A netlink family.
#[derive(Clone, Copy, Debug)]
pub(super) enum Family {
    /// Links, addresses, routes (rtnetlink(7)).
    Route,
    /// The messages of nftables.
    Netfilter,
}

/// A netlink message without its length and sequence.
#[derive(Clone, Debug)]
pub(super) struct Message {
    bytes: Vec<u8>,
    acknowledged: bool,
}

impl Message {
    /// Creates a request with the fixed part of its type.
    pub(super) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(fixed);
        Self { bytes, acknowledged: false }
    }

    /// Requests an acknowledgement.
    pub(super) fn acknowledged(mut self) -> Self {
        self.acknowledged = true;
        if let Some(flags) = self.bytes.get_mut(6) {
            *flags |= NLM_F_ACK.to_ne_bytes()[usize::from(cfg!(target_endian = "big"))];
        }
        self
    }

    /// Adds an attribute.
    pub(super) fn with(mut self, attribute: &[u8]) -> Self {
        self.bytes.extend(attribute);
        self
    }
}

/// Encodes an attribute: length, type, content, padded to four bytes.
pub(super) fn attribute(kind: u16, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len() + 4).unwrap_or(u16::MAX);
    let mut bytes = Vec::from(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Encodes a text attribute with its terminating zero.
pub(super) fn text(kind: u16, content: &str) -> Vec<u8> {
    attribute(kind, format!("{content}\0").as_bytes())
}

/// Encodes an attribute that contains others.
pub(super) fn nested(kind: u16, inner: &[Vec<u8>]) -> Vec<u8> {
    const NLA_F_NESTED: u16 = 1 << 15;
    attribute(kind | NLA_F_NESTED, &inner.concat())
}

/// Sends messages in one batch and waits for all requested acknowledgements.
pub(super) fn request(family: Family, messages: &[Message]) -> Result<(), String> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |errno: Errno| format!("{what}: {errno}")
    };
    let protocol = match family {
        // The default protocol of a netlink socket is 0, NETLINK_ROUTE.
        Family::Route => None,
        Family::Netfilter => Some(netlink::NETFILTER),
    };
    let socket: OwnedFd =
        socket(AddressFamily::NETLINK, SocketType::RAW, protocol).map_err(failed("netlink socket"))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_secs(2)))
        .map_err(failed("netlink timeout"))?;
    let mut batch = Vec::new();
    let mut expected = 0;
    for (sequence, message) in (1_u32..).zip(messages) {
        let mut bytes = message.bytes.clone();
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        bytes.splice(0..4, length.to_ne_bytes());
        bytes.splice(8..12, sequence.to_ne_bytes());
        batch.extend(bytes);
        expected += usize::from(message.acknowledged);
    }
    let kernel = SocketAddrNetlink::new(0, 0);
    sendto(&socket, &batch, SendFlags::empty(), &kernel).map_err(failed("netlink send"))?;
    while expected > 0 {
        let mut buffer = vec![0; 16 << 10];
        let (read, _) = recv(&socket, &mut buffer[..], RecvFlags::empty()).map_err(failed("no answer"))?;
        expected = expected.saturating_sub(acknowledgements(buffer.get(..read).unwrap_or_default())?);
    }
    Ok(())
}

/// Counts the acknowledgements in an answer. Returns the first error in it.
fn acknowledgements(mut answer: &[u8]) -> Result<usize, String> {
    let mut count = 0;
    while let (Some(length), Some(kind)) = (number(answer, 0), answer.get(4..6)) {
        let length = usize::try_from(length).unwrap_or(0);
        if length < HEADER || length > answer.len() {
            return Err("the kernel's answer is truncated".to_owned());
        }
        if kind == NLMSG_ERROR.to_ne_bytes() {
            let code = number(answer, HEADER).unwrap_or_default().cast_signed();
            if code != 0 {
                return Err(Errno::from_raw_os_error(code.saturating_neg()).to_string());
            }
            count += 1;
        }
        answer = answer.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(count)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answer(code: i32) -> Vec<u8> {
        let mut message = Message::new(NLMSG_ERROR, 0, &code.to_ne_bytes()).bytes;
        message.splice(0..4, 20_u32.to_ne_bytes());
        message
    }

    #[test]
    fn attributes_are_filled_up() {
        assert_eq!(text(3, "ab").len(), 8);
        assert_eq!(nested(1, &[text(1, "abcd"), attribute(2, &[])]).len(), 4 + 12 + 4);
    }

    #[test]
    fn answers() {
        assert_eq!(acknowledgements(&[answer(0), answer(0)].concat()), Ok(2));
        assert!(acknowledgements(&[answer(0), answer(-95)].concat()).unwrap_err().contains("not supported"));
        assert!(acknowledgements(&answer(0)[..18]).is_err());
    }

    proptest! {
        #[test]
        fn acknowledgements_are_counted_until_an_error_or_a_truncation(
            codes in proptest::collection::vec(prop_oneof![3 => Just(0), 1 => -133..0], 0..6),
            length: usize,
        ) {
            let answers: Vec<u8> = codes.iter().flat_map(|code| answer(*code)).collect();
            let received = &answers[..length % (answers.len() + 1)];
            let complete = received.len() / answer(0).len();
            let is_error = codes[..complete].iter().any(|code| *code != 0);
            // Up to 5 bytes after the last message have no length and type, and are ignored.
            let is_truncated = received.len() % answer(0).len() > 5;
            let expected = (!is_error && !is_truncated).then_some(complete);
            prop_assert_eq!(acknowledgements(received).ok(), expected);
        }

        #[test]
        fn arbitrary_bytes_have_no_more_acknowledgements_than_headers(bytes: Vec<u8>) {
            prop_assert!(acknowledgements(&bytes).unwrap_or_default() <= bytes.len() / HEADER);
        }
    }
}
