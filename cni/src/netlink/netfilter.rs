//! Requests to the subsystems of netfilter (linux/netfilter/nfnetlink.h): the socket, the framing, and dumps.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use rustix::io::Errno;

use super::messages::{HEADER_LENGTH, RawMessage, messages};
use super::{answer_lost, is_transient};

/// The length of `struct nfgenmsg`, which follows netlink's header.
const NETFILTER_HEADER_LENGTH: usize = 4;

/// A subsystem, which is the high byte of a message type (`NFNL_SUBSYS_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subsystem {
    /// Connection tracking (`NFNL_SUBSYS_CTNETLINK`).
    Conntrack,
    /// `NFNL_SUBSYS_NFTABLES`.
    Nftables,
}

impl Subsystem {
    pub(crate) fn number(self) -> u16 {
        match self {
            Self::Conntrack => 1,
            Self::Nftables => 10,
        }
    }

    /// Returns the type of a message of this subsystem in netlink's header.
    pub(crate) fn message_type(self, message: u16) -> u16 {
        (self.number() << 8) | message
    }

    /// Returns the message of a type in netlink's header; `None` for a message of another subsystem.
    pub(crate) fn message(self, message_type: u16) -> Option<u16> {
        (message_type >> 8 == self.number()).then_some(message_type & 0xff)
    }
}

/// The headers of a request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Headers {
    /// The type in netlink's header ([`Subsystem::message_type`], or `NFNL_MSG_BATCH_*`).
    pub(crate) message_type: u16,
    /// Flags in addition to `NLM_F_REQUEST`.
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// `NFPROTO_*`.
    pub(crate) family: u8,
    /// The resource id of `struct nfgenmsg`.
    pub(crate) resource: u16,
}

/// Appends one message: netlink's header, netfilter's header, the body.
pub(crate) fn append(buffer: &mut Vec<u8>, headers: Headers, body: &[u8]) {
    let length = HEADER_LENGTH + NETFILTER_HEADER_LENGTH + body.len();
    buffer.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    buffer.extend_from_slice(&headers.message_type.to_ne_bytes());
    buffer.extend_from_slice(&(NLM_F_REQUEST | headers.flags).to_ne_bytes());
    buffer.extend_from_slice(&headers.sequence.to_ne_bytes());
    buffer.extend_from_slice(&0_u32.to_ne_bytes());
    buffer.extend_from_slice(&[headers.family, 0]);
    buffer.extend_from_slice(&headers.resource.to_be_bytes());
    buffer.extend_from_slice(body);
    buffer.resize(buffer.len().next_multiple_of(4), 0);
}

/// Returns the attributes of a message, which follow netfilter's header.
pub(crate) fn attributes_of<'a>(message: &RawMessage<'a>) -> &'a [u8] {
    message.body.get(NETFILTER_HEADER_LENGTH..).unwrap_or_default()
}

/// Converts an error code of the kernel, which is negative.
pub(crate) fn refusal(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code.saturating_neg())
}

/// Dumps objects. Returns the attributes of each. The dump is repeated while concurrent changes interrupt it.
pub(crate) fn dump(message_type: u16, family: u8, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    const ATTEMPTS: u32 = 10;
    let mut wait = Duration::from_micros(200);
    for _attempt in 1..ATTEMPTS {
        match dump_once(message_type, family, body) {
            Ok((bodies, true)) => return Ok(bodies),
            Ok((_, false)) => {}
            Err(error) if is_transient(&error) => {}
            Err(error) => return Err(error),
        }
        std::thread::sleep(wait);
        wait *= 2;
    }
    // If the changes never stop, the last dump is used although it may be inconsistent.
    dump_once(message_type, family, body).map(|(bodies, _)| bodies)
}

/// Dumps once. Returns the attributes of each object, and whether the dump is consistent.
fn dump_once(message_type: u16, family: u8, body: &[u8]) -> io::Result<(Vec<Vec<u8>>, bool)> {
    let mut buffer = Vec::new();
    let headers = Headers { message_type, flags: NLM_F_DUMP, sequence: 1, family, ..Headers::default() };
    append(&mut buffer, headers, body);
    exchange(&buffer, |socket| {
        let (mut bodies, mut consistent) = (Vec::new(), true);
        while let Some(answer) = receive(socket)? {
            for message in messages(&answer) {
                consistent &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match (message.header.message_type, message.error()) {
                    (NLMSG_DONE, _) => match message.code() {
                        Some(code) if code < 0 => return Ok(Err(refusal(code))),
                        _ => return Ok(Ok((bodies, consistent))),
                    },
                    (_, Some(code)) if code != 0 => return Ok(Err(refusal(code))),
                    _ => bodies.push(attributes_of(&message).to_vec()),
                }
            }
        }
        Err(io::Error::from(Errno::NOBUFS))
    })?
}

/// Sends one request and returns whether the kernel accepted it.
pub(crate) fn request(message_type: u16, family: u8, body: &[u8]) -> io::Result<()> {
    let mut buffer = Vec::new();
    let headers = Headers { message_type, flags: NLM_F_ACK, sequence: 1, family, ..Headers::default() };
    append(&mut buffer, headers, body);
    let answer = exchange(&buffer, receive_one)?;
    match messages(&answer).next().and_then(|message| message.error()) {
        Some(0) | None => Ok(()),
        Some(code) => Err(refusal(code)),
    }
}

thread_local! {
    static SOCKET: RefCell<Option<OpenSocket>> = const { RefCell::new(None) };
}

/// The ports of this process' sockets. They identify its own changes in the kernel's notifications. Each network
/// namespace has its own ports, so two sockets may have the same.
static PORTS: Mutex<Option<HashMap<u32, usize>>> = Mutex::new(None);

/// Whether this process made a change.
pub(crate) fn is_own(port: u32) -> bool {
    let ports = PORTS.lock().unwrap_or_else(PoisonError::into_inner);
    ports.as_ref().is_some_and(|ports| ports.contains_key(&port))
}

/// A socket and its port.
struct OpenSocket {
    socket: Socket,
    port: u32,
}

impl Drop for OpenSocket {
    fn drop(&mut self) {
        let mut ports = PORTS.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(ports) = &mut *ports else { return };
        if let Some(sockets) = ports.get_mut(&self.port) {
            *sockets = sockets.saturating_sub(1);
        }
        ports.retain(|_, sockets| *sockets > 0);
    }
}

/// Sends a request on this thread's socket and reads the answers. The socket stays open for the next request: closing
/// it waits until the kernel has freed all deleted objects, which takes a wait for every processor (RCU, 10 ms;
/// net/netfilter's `nft_rcv_nl_event`). If `read` itself fails, unread answers may remain: the next request opens a new
/// socket. An error that the kernel reports is an answer and keeps the socket.
///
/// A thread that calls this must therefore not change its network namespace afterwards.
pub(crate) fn exchange<T>(request: &[u8], read: impl FnOnce(&Socket) -> io::Result<T>) -> io::Result<T> {
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
    let mut ports = PORTS.lock().unwrap_or_else(PoisonError::into_inner);
    *ports.get_or_insert_default().entry(port).or_default() += 1;
    Ok(OpenSocket { socket, port })
}

/// Returns the next unread answer, if there is one. The kernel has processed a request when the send returns: no answer
/// arrives later. Answers that did not fit into the socket's buffer are lost; the others are still delivered.
pub(crate) fn receive(socket: &Socket) -> io::Result<Option<Vec<u8>>> {
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

/// Returns the only answer of a request.
pub(crate) fn receive_one(socket: &Socket) -> io::Result<Vec<u8>> {
    receive(socket)?.ok_or_else(answer_lost)
}
