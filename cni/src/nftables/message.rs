//! Messages of nf_tables on a netlink socket (linux/netfilter/nfnetlink.h, nf_tables.h): atomic batches and dumps.

use std::cell::RefCell;
use std::collections::HashSet;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::attributes::{Attributes, attribute};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use rustix::io::Errno;

// linux/netfilter/nfnetlink.h.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// The subsystem of nftables in message types (`NFNL_SUBSYS_NFTABLES`).
pub(super) const SUBSYSTEM: u16 = 10 << 8;
/// The attribute of the ruleset's expected generation in a batch (`NFNL_BATCH_GENID`).
const BATCH_GENERATION: u16 = 1;

pub(super) const NEW_TABLE: u16 = 0;
pub(super) const DELETE_TABLE: u16 = 2;
pub(super) const NEW_CHAIN: u16 = 3;
pub(super) const GET_CHAIN: u16 = 4;
pub(super) const DELETE_CHAIN: u16 = 5;
pub(super) const NEW_RULE: u16 = 6;
pub(super) const GET_RULE: u16 = 7;
pub(super) const DELETE_RULE: u16 = 8;
pub(super) const NEW_SET: u16 = 9;
pub(super) const DELETE_SET: u16 = 11;
pub(super) const NEW_ELEMENT: u16 = 12;
pub(super) const GET_ELEMENT: u16 = 13;
pub(super) const DELETE_ELEMENT: u16 = 14;
const GET_GENERATION: u16 = 16;

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
pub(super) const CREATE: u16 = 0x400;
pub(super) const APPEND: u16 = 0x800;
/// `NLM_F_ROOT | NLM_F_MATCH`.
pub(crate) const DUMP: u16 = 0x300;

/// `NLMSG_ERROR` and `NLMSG_DONE` (netlink(7)).
const ERROR: u16 = 2;
const DONE: u16 = 3;

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
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Ip6 => 10,
            Self::Bridge => 7,
        }
    }
}

impl Family {
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

/// Messages that are applied atomically if they fit into one datagram. A larger batch is sent in parts, each of which
/// is applied atomically.
#[derive(Debug)]
pub(super) struct Batch {
    family: Family,
    /// The body of each part's begin message.
    begin: Vec<u8>,
    messages: Vec<Vec<u8>>,
}

/// Appends one message: netlink's header, netfilter's header, the body.
pub(crate) fn append_message(
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
    buffer.extend_from_slice(&(REQUEST | flags).to_ne_bytes());
    buffer.extend_from_slice(&sequence.to_ne_bytes());
    buffer.extend_from_slice(&0_u32.to_ne_bytes());
    buffer.extend_from_slice(&[family, 0]);
    buffer.extend_from_slice(&resource.to_be_bytes());
    buffer.extend_from_slice(body);
    buffer.resize(buffer.len().next_multiple_of(4), 0);
}

impl Batch {
    pub(super) fn new(family: Family) -> Self {
        Self::start(family, &[])
    }

    /// A batch that the kernel refuses with `ERESTART` if the rules have changed since `generation` was read.
    pub(super) fn since(family: Family, generation: u32) -> Self {
        let mut body = Attributes::default();
        body.number(BATCH_GENERATION, generation);
        Self::start(family, body.as_bytes())
    }

    fn start(family: Family, body: &[u8]) -> Self {
        Self { family, begin: body.to_vec(), messages: Vec::new() }
    }

    pub(super) fn message(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Attributes)) {
        let mut body = Attributes::default();
        fill(&mut body);
        let (mut message, sequence) =
            (Vec::new(), u32::try_from(self.messages.len() + 1).unwrap_or(u32::MAX));
        let family = self.family.number();
        append_message(&mut message, SUBSYSTEM | kind, flags, sequence, family, 0, body.as_bytes());
        self.messages.push(message);
    }

    /// Sends the batch. The first refusal is the error.
    pub(super) fn send(self) -> io::Result<()> {
        /// Below the default size of a socket's send buffer, 208 KiB (`wmem_default` of socket(7)).
        const MAX_PART: usize = 64 << 10;
        let mut rest = self.messages.as_slice();
        while !rest.is_empty() {
            let mut size = 0;
            let fits = rest.iter().take_while(|message| {
                size += message.len();
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
    fn send_part(&self, part: &[Vec<u8>]) -> io::Result<()> {
        let mut buffer = Vec::new();
        append_message(&mut buffer, BATCH_BEGIN, 0, 0, 0, SUBSYSTEM >> 8, &self.begin);
        let mut last = 0;
        for (place, message) in part.iter().enumerate() {
            let start = buffer.len();
            buffer.extend_from_slice(message);
            if place + 1 == part.len() {
                last = message.get(8..12).and_then(|word| word.try_into().ok()).map_or(0, u32::from_ne_bytes);
                if let Some(flags) = buffer.get_mut(start + 6..start + 8) {
                    let previous = flags.try_into().map_or(0, u16::from_ne_bytes);
                    flags.copy_from_slice(&(previous | ACK).to_ne_bytes());
                }
            }
        }
        append_message(&mut buffer, BATCH_END, 0, last.wrapping_add(1), 0, SUBSYSTEM >> 8, &[]);
        exchange(&buffer, |socket| {
            let (mut acknowledged, mut refused) = (false, None);
            while let Some(answer) = receive(socket)? {
                for message in messages(&answer) {
                    match message.error() {
                        Some(0) => acknowledged |= message.sequence == last,
                        Some(code) => refused = refused.or(Some(code)),
                        None => tracing::trace!(sequence = message.sequence, "unexpected netlink message"),
                    }
                }
            }
            match (refused, acknowledged) {
                (Some(code), _) => Ok(Err(refusal(code))),
                (None, true) => Ok(Ok(())),
                (None, false) => Err(io::Error::other("the kernel's answer was lost")),
            }
        })?
    }
}

/// Converts an error code of the kernel, which is negative.
fn refusal(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code.saturating_neg())
}

/// Dumps objects of nf_tables. Returns the body of each message after netfilter's header. An object that does not exist
/// yields an empty list.
pub(super) fn list(
    family: Family,
    kind: u16,
    fill: impl FnOnce(&mut Attributes),
) -> io::Result<Vec<Vec<u8>>> {
    let mut body = Attributes::default();
    fill(&mut body);
    match dump(SUBSYSTEM | kind, family.number(), body.as_bytes()) {
        Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Ok(Vec::new()),
        listed => listed,
    }
}

/// Dumps objects of any netfilter subsystem. Returns the body of each message after netfilter's header. The dump is
/// repeated while concurrent changes interrupt it.
pub(crate) fn dump(kind: u16, family: u8, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    const ATTEMPTS: u32 = 10;
    let mut wait = Duration::from_micros(200);
    for _attempt in 1..ATTEMPTS {
        match dump_once(kind, family, body) {
            Ok((bodies, true)) => return Ok(bodies),
            Ok((_, false)) => {}
            Err(error) if is_transient(&error) => {}
            Err(error) => return Err(error),
        }
        std::thread::sleep(wait);
        wait *= 2;
    }
    // If the changes never stop, the last dump is used although it may be inconsistent.
    dump_once(kind, family, body).map(|(bodies, _)| bodies)
}

fn is_transient(error: &io::Error) -> bool {
    let transient = [Errno::BUSY, Errno::INTR, Errno::NOBUFS, Errno::AGAIN].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|code| transient.contains(&code))
}

/// Dumps once. Returns the bodies and whether the dump is consistent.
fn dump_once(kind: u16, family: u8, body: &[u8]) -> io::Result<(Vec<Vec<u8>>, bool)> {
    /// The flag of a dump that a change has made inconsistent (`NLM_F_DUMP_INTR`).
    const INTERRUPTED: u16 = 0x10;
    let mut buffer = Vec::new();
    append_message(&mut buffer, kind, DUMP, 1, family, 0, body);
    exchange(&buffer, |socket| {
        let (mut bodies, mut consistent) = (Vec::new(), true);
        while let Some(answer) = receive(socket)? {
            for message in messages(&answer) {
                consistent &= message.flags & INTERRUPTED == 0;
                match (message.kind, message.error()) {
                    (DONE, _) => match message.code() {
                        Some(code) if code < 0 => return Ok(Err(refusal(code))),
                        _ => return Ok(Ok((bodies, consistent))),
                    },
                    (_, Some(code)) if code != 0 => return Ok(Err(refusal(code))),
                    _ => bodies.push(message.body.get(4..).unwrap_or_default().to_vec()),
                }
            }
        }
        Err(io::Error::from(Errno::NOBUFS))
    })?
}

/// Sends one request and returns whether the kernel accepted it.
pub(crate) fn request(kind: u16, family: u8, body: &[u8]) -> io::Result<()> {
    let mut buffer = Vec::new();
    append_message(&mut buffer, kind, ACK, 1, family, 0, body);
    let answer = exchange(&buffer, receive_one)?;
    match messages(&answer).next().and_then(|message| message.error()) {
        Some(0) | None => Ok(()),
        Some(code) => Err(refusal(code)),
    }
}

/// Looks up objects. Returns the body of each answer, `None` if the object does not exist. One lookup each, however
/// many objects there are.
pub(super) fn get(family: Family, kind: u16, requests: &[Attributes]) -> io::Result<Vec<Option<Vec<u8>>>> {
    /// The answers of a batch fit into the socket's buffer.
    const MAX_BATCH: usize = 32;
    let mut bodies = Vec::with_capacity(requests.len());
    for batch in requests.chunks(MAX_BATCH) {
        let mut buffer = Vec::new();
        for (sequence, body) in (0..).zip(batch) {
            append_message(&mut buffer, SUBSYSTEM | kind, 0, sequence, family.number(), 0, body.as_bytes());
        }
        bodies.extend(exchange(&buffer, |socket| {
            let (mut answers, mut refused) = (vec![None; batch.len()], None);
            while let Some(answer) = receive(socket)? {
                for message in messages(&answer) {
                    let place = usize::try_from(message.sequence).ok();
                    let Some(answer) = place.and_then(|place| answers.get_mut(place)) else { continue };
                    *answer = Some(match message.error() {
                        Some(code) if code == -Errno::NOENT.raw_os_error() => None,
                        Some(code) => {
                            refused = refused.or(Some(code));
                            None
                        }
                        None => Some(message.body.get(4..).unwrap_or_default().to_vec()),
                    });
                }
            }
            let all: Option<Vec<_>> = answers.into_iter().collect();
            let all = all.ok_or_else(|| io::Error::other("the kernel's answer was lost"))?;
            Ok(refused.map_or(Ok(all), |code| Err(refusal(code))))
        })??);
    }
    Ok(bodies)
}

/// Returns the kernel's generation number of the ruleset.
pub(super) fn generation() -> io::Result<u32> {
    /// The attribute of the ruleset's current generation (`NFTA_GEN_ID`).
    const ID: u16 = 1;
    let mut buffer = Vec::new();
    append_message(&mut buffer, SUBSYSTEM | GET_GENERATION, 0, 1, 0, 0, &[]);
    let answer = exchange(&buffer, receive_one)?;
    let message = messages(&answer).next();
    let id = message.and_then(|message| attribute(message.body.get(4..)?, ID)?.try_into().ok());
    id.map(u32::from_be_bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

thread_local! {
    static SOCKET: RefCell<Option<OpenSocket>> = const { RefCell::new(None) };
}

/// The ports of this process' sockets. They identify its own changes in the kernel's notifications.
static PORTS: Mutex<Option<HashSet<u32>>> = Mutex::new(None);

/// Whether this process made a change.
pub(super) fn is_own(port: u32) -> bool {
    let ports = PORTS.lock().unwrap_or_else(PoisonError::into_inner);
    ports.as_ref().is_some_and(|ports| ports.contains(&port))
}

/// A socket and its port.
struct OpenSocket {
    socket: Socket,
    port: u32,
}

impl Drop for OpenSocket {
    fn drop(&mut self) {
        if let Some(ports) = &mut *PORTS.lock().unwrap_or_else(PoisonError::into_inner) {
            ports.remove(&self.port);
        }
    }
}

/// Sends a request on this thread's socket and reads the answers. The socket stays open for the next request: closing
/// it waits until the kernel has freed all deleted objects, which takes a wait for every processor (RCU, 10 ms;
/// net/netfilter's `nft_rcv_nl_event`). If `read` itself fails, unread answers may remain: the next request opens a new
/// socket. An error that the kernel reports is an answer and keeps the socket.
///
/// A thread that calls this must therefore not change its network namespace.
fn exchange<T>(request: &[u8], read: impl FnOnce(&Socket) -> io::Result<T>) -> io::Result<T> {
    let idle = SOCKET.with(RefCell::take);
    let open = idle.map_or_else(connect, Ok)?;
    open.socket.send(request, 0)?;
    let answer = read(&open.socket)?;
    SOCKET.set(Some(open));
    Ok(answer)
}

fn connect() -> io::Result<OpenSocket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    let port = socket.bind_auto()?.port_number();
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.set_non_blocking(true)?;
    // Errors do not contain a copy of the request (netlink(7), NETLINK_CAP_ACK).
    socket.set_cap_ack(true)?;
    PORTS.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default().insert(port);
    Ok(OpenSocket { socket, port })
}

/// Returns the next unread answer, if there is one. The kernel has processed a request when the send returns: no answer
/// arrives later. Answers that did not fit into the socket's buffer are lost; the others are still delivered.
fn receive(socket: &Socket) -> io::Result<Option<Vec<u8>>> {
    /// Larger than any message of a dump (`NLMSG_GOODSIZE`, and the buffer size of libmnl).
    const BUFFER_SIZE: usize = 64 << 10;
    let mut buffer = Vec::with_capacity(BUFFER_SIZE);
    loop {
        match socket.recv(&mut buffer, 0) {
            Ok(_) => return Ok(Some(buffer)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
    }
}

fn receive_one(socket: &Socket) -> io::Result<Vec<u8>> {
    receive(socket)?.ok_or_else(|| io::Error::other("the kernel's answer was lost"))
}

pub(super) struct Message<'a> {
    pub(super) kind: u16,
    flags: u16,
    sequence: u32,
    /// The port of the socket that sent the request, or that caused the notified change.
    pub(super) port: u32,
    pub(super) body: &'a [u8],
}

impl Message<'_> {
    /// The code of an `NLMSG_ERROR`, 0 for success; `None` for other messages.
    fn error(&self) -> Option<i32> {
        self.code().filter(|_| self.kind == ERROR)
    }

    fn code(&self) -> Option<i32> {
        self.body.get(..4)?.try_into().ok().map(i32::from_ne_bytes)
    }
}

pub(super) fn messages(mut buffer: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let word = |at: usize| -> Option<[u8; 4]> { buffer.get(at..at + 4)?.try_into().ok() };
        let length = usize::try_from(u32::from_ne_bytes(word(0)?)).ok()?;
        let kind = u16::from_ne_bytes(buffer.get(4..6)?.try_into().ok()?);
        let flags = u16::from_ne_bytes(buffer.get(6..8)?.try_into().ok()?);
        let (sequence, port) = (u32::from_ne_bytes(word(8)?), u32::from_ne_bytes(word(12)?));
        let body = buffer.get(16..length)?;
        buffer = buffer.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, flags, sequence, port, body })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(bytes: Vec<u8>) {
            let _all = messages(&bytes).count();
        }
    }
}
