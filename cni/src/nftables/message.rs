//! Messages of nf_tables (linux/netfilter/nf_tables.h): atomic batches, dumps and look-ups.

use std::io;

use netlink_packet_core::NLM_F_ACK;
use rustix::io::Errno;

use super::uapi::{
    NFNL_BATCH_GENID, NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END, NFPROTO_BRIDGE, NFPROTO_INET, NFPROTO_IPV4,
    NFPROTO_IPV6, NFT_MSG_GETGEN, NFTA_GEN_ID,
};
use crate::netlink::answer_lost;
use crate::netlink::attributes::{Attributes, attribute};
use crate::netlink::messages::messages;
use crate::netlink::netfilter::{
    self, Headers, Subsystem, append, attributes_of, exchange, receive, receive_one, refusal,
};

/// The family of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4 only: the family of iptables' rules.
    Ip,
    /// IPv6 only.
    Ip6,
    /// Frames on a bridge.
    Bridge,
}

impl Family {
    fn number(self) -> u8 {
        match self {
            Self::Inet => NFPROTO_INET,
            Self::Ip => NFPROTO_IPV4,
            Self::Ip6 => NFPROTO_IPV6,
            Self::Bridge => NFPROTO_BRIDGE,
        }
    }

    /// The name in nft(8).
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Bridge => "bridge",
        }
    }
}

/// A message of a batch.
#[derive(Debug)]
struct BatchMessage {
    headers: Headers,
    body: Attributes,
}

impl BatchMessage {
    /// At least the length of the encoded message.
    fn size(&self) -> usize {
        const HEADERS: usize = 20;
        HEADERS + self.body.as_bytes().len()
    }
}

/// Messages that are applied atomically if they fit into one datagram. A larger batch is sent in parts, each of which
/// is applied atomically.
#[derive(Debug)]
pub(super) struct Batch {
    family: Family,
    /// The body of each part's begin message.
    begin: Attributes,
    messages: Vec<BatchMessage>,
}

impl Batch {
    pub(super) fn new(family: Family) -> Self {
        Self { family, begin: Attributes::default(), messages: Vec::new() }
    }

    /// A batch that the kernel refuses with `ERESTART` if the rules have changed since `generation` was read.
    pub(super) fn since(family: Family, generation: u32) -> Self {
        let mut batch = Self::new(family);
        batch.begin.number(NFNL_BATCH_GENID, generation);
        batch
    }

    /// Adds a message (`NFT_MSG_*`).
    pub(super) fn message(&mut self, message: u16, flags: u16, fill: impl FnOnce(&mut Attributes)) {
        let mut body = Attributes::default();
        fill(&mut body);
        let headers = Headers {
            message_type: Subsystem::Nftables.message_type(message),
            flags,
            sequence: u32::try_from(self.messages.len() + 1).unwrap_or(u32::MAX),
            family: self.family.number(),
            resource: 0,
        };
        self.messages.push(BatchMessage { headers, body });
    }

    /// Sends the batch. The first refusal is the error.
    pub(super) fn send(self) -> io::Result<()> {
        /// Below the default size of a socket's send buffer, 208 KiB (`wmem_default` of socket(7)).
        const MAX_PART: usize = 64 << 10;
        let mut rest = self.messages.as_slice();
        while !rest.is_empty() {
            let mut size = 0;
            let fits = rest.iter().take_while(|message| {
                size += message.size();
                size <= MAX_PART
            });
            let (part, later) = rest.split_at(fits.count().clamp(1, rest.len()));
            self.send_part(part)?;
            rest = later;
        }
        Ok(())
    }

    /// Only the last message requests an acknowledgement: a single answer always fits into the socket's buffer. The
    /// kernel reports an error for each refused message while there is space; the first error is enough.
    fn send_part(&self, part: &[BatchMessage]) -> io::Result<()> {
        let limit = |message_type: u16, sequence: u32| Headers {
            message_type,
            sequence,
            resource: Subsystem::Nftables.number(),
            ..Headers::default()
        };
        let mut buffer = Vec::new();
        append(&mut buffer, limit(NFNL_MSG_BATCH_BEGIN, 0), self.begin.as_bytes());
        let last = part.last().map_or(0, |message| message.headers.sequence);
        for BatchMessage { headers, body } in part {
            let mut headers = *headers;
            if headers.sequence == last {
                headers.flags |= NLM_F_ACK;
            }
            append(&mut buffer, headers, body.as_bytes());
        }
        append(&mut buffer, limit(NFNL_MSG_BATCH_END, last.wrapping_add(1)), &[]);
        exchange(&buffer, |socket| {
            let (mut acknowledged, mut refused) = (false, None);
            while let Some(answer) = receive(socket)? {
                for message in messages(&answer) {
                    let sequence = message.header.sequence_number;
                    match message.error() {
                        Some(0) => acknowledged |= sequence == last,
                        Some(code) => refused = refused.or(Some(code)),
                        None => tracing::trace!(sequence, "unexpected netlink message"),
                    }
                }
            }
            match (refused, acknowledged) {
                (Some(code), _) => Ok(Err(refusal(code))),
                (None, true) => Ok(Ok(())),
                (None, false) => Err(answer_lost()),
            }
        })?
    }
}

/// Dumps objects. Returns the attributes of each. An object that does not exist yields an empty list.
pub(super) fn list(
    family: Family,
    message: u16,
    fill: impl FnOnce(&mut Attributes),
) -> io::Result<Vec<Vec<u8>>> {
    let mut body = Attributes::default();
    fill(&mut body);
    match netfilter::dump(Subsystem::Nftables.message_type(message), family.number(), body.as_bytes()) {
        Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Ok(Vec::new()),
        listed => listed,
    }
}

/// Looks up objects. Returns the attributes of each, `None` if the object does not exist. One lookup each, however many
/// objects there are.
pub(super) fn get(family: Family, message: u16, requests: &[Attributes]) -> io::Result<Vec<Option<Vec<u8>>>> {
    /// The answers of a batch fit into the socket's buffer.
    const MAX_BATCH: usize = 32;
    let message_type = Subsystem::Nftables.message_type(message);
    let mut bodies = Vec::with_capacity(requests.len());
    for batch in requests.chunks(MAX_BATCH) {
        let mut buffer = Vec::new();
        for (sequence, body) in (0..).zip(batch) {
            let headers = Headers { message_type, sequence, family: family.number(), ..Headers::default() };
            append(&mut buffer, headers, body.as_bytes());
        }
        bodies.extend(exchange(&buffer, |socket| {
            let (mut answers, mut refused) = (vec![None; batch.len()], None);
            while let Some(answer) = receive(socket)? {
                for message in messages(&answer) {
                    let place = usize::try_from(message.header.sequence_number).ok();
                    let Some(answer) = place.and_then(|place| answers.get_mut(place)) else { continue };
                    *answer = Some(match message.error() {
                        Some(code) if code == -Errno::NOENT.raw_os_error() => None,
                        Some(code) => {
                            refused = refused.or(Some(code));
                            None
                        }
                        None => Some(attributes_of(&message).to_vec()),
                    });
                }
            }
            let all: Option<Vec<_>> = answers.into_iter().collect();
            let all = all.ok_or_else(answer_lost)?;
            Ok(refused.map_or(Ok(all), |code| Err(refusal(code))))
        })??);
    }
    Ok(bodies)
}

/// Returns the kernel's generation number of the ruleset.
pub(super) fn generation() -> io::Result<u32> {
    let message_type = Subsystem::Nftables.message_type(NFT_MSG_GETGEN);
    let mut buffer = Vec::new();
    append(&mut buffer, Headers { message_type, sequence: 1, ..Headers::default() }, &[]);
    let answer = exchange(&buffer, receive_one)?;
    let message = messages(&answer).next();
    let id = message.and_then(|message| attribute(attributes_of(&message), NFTA_GEN_ID)?.try_into().ok());
    id.map(u32::from_be_bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
}
