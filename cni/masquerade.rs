//! Masquerade in nftables: packets of pods to anywhere but their own network get the host's address. One table named for
//! berth, one chain a network; what others have in nftables is never touched (nft(8); the messages are those of
//! linux/netfilter/nf_tables.h).
//!
//! A batch is atomic: the chain has the old rules or the new, never none.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use crate::{Context, Error, Result};

const TABLE: &str = "berth";

// linux/netfilter/nfnetlink.h and nf_tables.h.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10 << 8;
const NEW_TABLE: u16 = SUBSYSTEM;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const DELETE_CHAIN: u16 = SUBSYSTEM | 5;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const DELETE_RULE: u16 = SUBSYSTEM | 8;
const GET_TABLE: u16 = SUBSYSTEM | 1;

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

const INET: u8 = 1;
const NESTED: u16 = 0x8000;
const ENOENT: i32 = 2;

/// Where the addresses of a packet are.
struct Family {
    protocol: u8,
    source: u32,
    destination: u32,
    length: u32,
    /// The first byte of a multicast address, and which of its bits say so.
    multicast: (u8, u8),
}

const V4: Family = Family { protocol: 2, source: 12, destination: 16, length: 4, multicast: (0xe0, 0xf0) };
const V6: Family = Family { protocol: 10, source: 8, destination: 24, length: 16, multicast: (0xff, 0xff) };

/// Masquerades what comes from these subnets of a network. Rules that the network has already are replaced.
pub(crate) fn apply(network: &str, subnets: &[IpNet]) -> Result<()> {
    let chain = chain(network);
    let mut batch = Batch::new();
    batch.message(NEW_TABLE, CREATE, |m| m.text(1, TABLE));
    batch.message(NEW_CHAIN, CREATE, |m| {
        m.text(1, TABLE);
        m.text(3, &chain);
        m.nested(4, |hook| {
            // NF_INET_POST_ROUTING, at the priority of source NAT.
            hook.number(1, 4);
            hook.number(2, 100);
        });
        m.text(7, "nat");
    });
    batch.message(DELETE_RULE, 0, |m| {
        m.text(1, TABLE);
        m.text(2, &chain);
    });
    for subnet in subnets {
        batch.message(NEW_RULE, CREATE | APPEND, |m| {
            m.text(1, TABLE);
            m.text(2, &chain);
            m.nested(4, |list| masquerade_rule(list, subnet));
        });
    }
    batch.send().doing_to("masquerade", network)
}

/// Takes a network's rules away, and the table with the last of them.
pub(crate) fn remove(network: &str) -> Result<()> {
    let chain = chain(network);
    let mut batch = Batch::new();
    batch.message(DELETE_RULE, 0, |m| {
        m.text(1, TABLE);
        m.text(2, &chain);
    });
    batch.message(DELETE_CHAIN, 0, |m| {
        m.text(1, TABLE);
        m.text(3, &chain);
    });
    match batch.send() {
        Err(error) if error.raw_os_error() == Some(ENOENT) => {}
        sent => sent.doing_to("remove the masquerade of", network)?,
    }
    // A table that another berth in this network namespace uses has chains left.
    if chains_in_table().doing_to("look at the table of", network)? == Some(0) {
        let mut batch = Batch::new();
        batch.message(DELETE_TABLE, 0, |m| m.text(1, TABLE));
        batch.send().doing_to("remove the table of", network)?;
    }
    Ok(())
}

fn chain(network: &str) -> String {
    format!("masquerade-{network}")
}

trait DoingTo<T> {
    fn doing_to(self, action: &str, network: &str) -> Result<T>;
}

impl<T> DoingTo<T> for std::io::Result<T> {
    fn doing_to(self, action: &str, network: &str) -> Result<T> {
        self.map_err(|source| Error::Io { action: format!("{action} network {network} (nftables)"), source })
    }
}

/// `meta nfproto F; ip saddr SUBNET; ip daddr != SUBNET; ip daddr != multicast; masquerade`.
fn masquerade_rule(list: &mut Attributes, subnet: &IpNet) {
    let family = if subnet.addr().is_ipv4() { V4 } else { V6 };
    let (network, mask) = (bytes(subnet.network()), bytes(subnet.netmask()));
    expression(list, "meta", |e| {
        // NFT_META_NFPROTO into register 1.
        e.number(2, 15);
        e.number(1, 1);
    });
    compare(list, true, &[family.protocol]);
    masked(list, family.source, &mask);
    compare(list, true, &network);
    masked(list, family.destination, &mask);
    compare(list, false, &network);
    load(list, family.destination, 1);
    bitwise(list, &[family.multicast.1]);
    compare(list, false, &[family.multicast.0]);
    expression(list, "masq", |_| {});
    debug_assert_eq!(network.len(), usize::try_from(family.length).unwrap_or(0));
}

fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn expression(list: &mut Attributes, name: &str, data: impl FnOnce(&mut Attributes)) {
    list.nested(1, |element| {
        element.text(1, name);
        element.nested(2, data);
    });
}

/// Bytes of the network header into register 1.
fn load(list: &mut Attributes, offset: u32, length: usize) {
    expression(list, "payload", |e| {
        e.number(1, 1);
        e.number(2, 1);
        e.number(3, offset);
        e.number(4, u32::try_from(length).unwrap_or(0));
    });
}

fn bitwise(list: &mut Attributes, mask: &[u8]) {
    expression(list, "bitwise", |e| {
        e.number(1, 1);
        e.number(2, 1);
        e.number(3, u32::try_from(mask.len()).unwrap_or(0));
        e.nested(4, |data| data.bytes(1, mask));
        e.nested(5, |data| data.bytes(1, &vec![0; mask.len()]));
    });
}

fn masked(list: &mut Attributes, offset: u32, mask: &[u8]) {
    load(list, offset, mask.len());
    bitwise(list, mask);
}

fn compare(list: &mut Attributes, equal: bool, value: &[u8]) {
    expression(list, "cmp", |e| {
        e.number(1, 1);
        e.number(2, u32::from(!equal));
        e.nested(3, |data| data.bytes(1, value));
    });
}

/// Attributes of netlink: length, type, value, padded to four bytes.
#[derive(Default)]
struct Attributes {
    buffer: Vec<u8>,
}

impl Attributes {
    fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.buffer.extend_from_slice(&length.to_ne_bytes());
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer.extend_from_slice(value);
        self.buffer.resize(self.buffer.len().next_multiple_of(4), 0);
    }

    fn text(&mut self, kind: u16, value: &str) {
        let mut terminated = value.as_bytes().to_vec();
        terminated.push(0);
        self.bytes(kind, &terminated);
    }

    /// Numbers of nf_tables are big-endian.
    fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        fill(&mut inner);
        self.bytes(kind | NESTED, &inner.buffer);
    }
}

/// Messages that are applied together or not at all.
struct Batch {
    buffer: Vec<u8>,
    messages: u32,
}

fn header(
    buffer: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    resource: u16,
    body: &[u8],
) {
    let length = u32::try_from(16 + 4 + body.len()).unwrap_or(u32::MAX);
    buffer.extend_from_slice(&length.to_ne_bytes());
    buffer.extend_from_slice(&kind.to_ne_bytes());
    buffer.extend_from_slice(&flags.to_ne_bytes());
    buffer.extend_from_slice(&sequence.to_ne_bytes());
    buffer.extend_from_slice(&0_u32.to_ne_bytes());
    buffer.extend_from_slice(&[family, 0]);
    buffer.extend_from_slice(&resource.to_be_bytes());
    buffer.extend_from_slice(body);
}

impl Batch {
    fn new() -> Self {
        let mut buffer = Vec::new();
        header(&mut buffer, BATCH_BEGIN, REQUEST, 0, 0, SUBSYSTEM >> 8, &[]);
        Self { buffer, messages: 0 }
    }

    fn message(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Attributes)) {
        let mut attributes = Attributes::default();
        fill(&mut attributes);
        self.messages += 1;
        let flags = REQUEST | ACK | flags;
        header(&mut self.buffer, kind, flags, self.messages, INET, 0, &attributes.buffer);
    }

    /// Sends the batch and reads the answer to each message; the first refusal is the error.
    fn send(mut self) -> std::io::Result<()> {
        header(&mut self.buffer, BATCH_END, REQUEST, self.messages + 1, 0, SUBSYSTEM >> 8, &[]);
        let socket = connect()?;
        socket.send(&self.buffer, 0)?;
        let mut acknowledged = 0;
        while acknowledged < self.messages {
            for (sequence, code) in answers(&receive(&socket)?) {
                match code {
                    Some(0) => acknowledged += 1,
                    Some(code) => return Err(std::io::Error::from_raw_os_error(-code)),
                    None => tracing::trace!(sequence, "a message that is no answer"),
                }
            }
        }
        Ok(())
    }
}

fn connect() -> std::io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

fn receive(socket: &Socket) -> std::io::Result<Vec<u8>> {
    let mut buffer = Vec::with_capacity(16 << 10);
    socket.recv(&mut buffer, 0)?;
    Ok(buffer)
}

/// Sequence and error code of each message; `None` for one that carries none.
fn answers(buffer: &[u8]) -> Vec<(u32, Option<i32>)> {
    let mut answers = Vec::new();
    let mut rest = buffer;
    while let Some((length, kind, sequence, body)) = message(rest) {
        // NLMSG_ERROR: the code, then the message that it is about.
        let code = body.get(..4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
        answers.push((sequence, if kind == 2 { code } else { None }));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    answers
}

fn message(buffer: &[u8]) -> Option<(usize, u16, u32, &[u8])> {
    let word = |at: usize| -> Option<[u8; 4]> { buffer.get(at..at + 4)?.try_into().ok() };
    let length = usize::try_from(u32::from_ne_bytes(word(0)?)).ok()?;
    let kind = u16::from_ne_bytes(buffer.get(4..6)?.try_into().ok()?);
    let sequence = u32::from_ne_bytes(word(8)?);
    (length >= 16).then(|| Some((length, kind, sequence, buffer.get(16..length)?)))?
}

/// How many chains the table has; `None` where there is no table.
fn chains_in_table() -> std::io::Result<Option<u32>> {
    let mut attributes = Attributes::default();
    attributes.text(1, TABLE);
    let mut buffer = Vec::new();
    header(&mut buffer, GET_TABLE, REQUEST, 1, INET, 0, &attributes.buffer);
    let socket = connect()?;
    socket.send(&buffer, 0)?;
    let answer = receive(&socket)?;
    let Some((_, kind, _, body)) = message(&answer) else { return Ok(None) };
    if kind == 2 {
        return match body.get(..4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes) {
            Some(code) if code == -ENOENT => Ok(None),
            Some(code) => Err(std::io::Error::from_raw_os_error(-code)),
            None => Ok(None),
        };
    }
    // After the family and version come attributes; NFTA_TABLE_USE is 3.
    let mut rest = body.get(4..).unwrap_or_default();
    while let Some(length) = rest.get(..2).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes) {
        let length = usize::from(length);
        let kind = rest.get(2..4).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
        if kind == Some(3) {
            return Ok(rest.get(4..8).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes));
        }
        if length < 4 {
            break;
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(None)
}

/// Runs blocking work of this module away from the threads that answer requests.
pub(crate) async fn blocking(work: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.map_err(std::io::Error::other).doing("run nftables work")?
}
