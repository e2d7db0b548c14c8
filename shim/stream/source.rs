//! The source of a connection: a user of this host, or another host. All users of this host connect from the
//! loopback address; the kernel reports the user by the socket at the other end (sock_diag(7)).

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::net::netlink::{SOCK_DIAG, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// The source of connections, which share one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ClientSource {
    /// A user of this host.
    User(u32),
    /// Another host or a pod. For IPv6 its /64 network, since a host can use any address in it.
    Host(IpAddr),
}

impl ClientSource {
    /// Returns the source of a remote address.
    fn of_address(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::Host(address.into()),
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Self::Host(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into())
            }
        }
    }
}

/// Looks up the source of connections.
#[derive(Debug)]
pub(super) struct Sources {
    /// None on a kernel without sock_diag: then sources are distinguished only by address.
    socket: Option<OwnedFd>,
    next: AtomicU32,
}

impl Sources {
    /// Opens a sock_diag socket in the network namespace of this thread.
    pub(super) fn open() -> Self {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(SOCK_DIAG))
                .and_then(|socket| {
                    rustix::net::connect(&socket, &SocketAddrNetlink::new(0, 0)).map(|()| socket)
                });
        if let Err(error) = &socket {
            tracing::warn!(%error, "failed to open a sock_diag socket; local users share one connection limit");
        }
        Self { socket: socket.ok(), next: AtomicU32::new(1) }
    }

    /// Returns the source of a connection, given the addresses of its remote and local end.
    pub(super) fn of(&self, remote: SocketAddr, local: SocketAddr) -> ClientSource {
        match self.user(remote, local) {
            Some(uid) => ClientSource::User(uid),
            None => ClientSource::of_address(remote.ip()),
        }
    }

    /// Returns the owner of the remote end's socket, if it is on this host.
    fn user(&self, remote: SocketAddr, local: SocketAddr) -> Option<u32> {
        let socket = self.socket.as_ref()?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        rustix::net::send(socket, &encode_request(remote, local, number)?, SendFlags::empty()).ok()?;
        // When send returns, the kernel has answered (netlink(7)). Older messages are the remains of a
        // request whose answer was cut off.
        let mut answer = [0_u8; 1024];
        loop {
            let (length, _) = rustix::net::recv(socket, &mut answer, RecvFlags::DONTWAIT).ok()?;
            match parse(answer.get(..length).unwrap_or_default()) {
                Some(DiagReply { number: other, .. }) if other != number => {}
                answer => return answer?.uid,
            }
        }
    }
}

/// `SOCK_DIAG_BY_FAMILY` (linux/sock_diag.h).
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `NLM_F_REQUEST` (netlink(7)).
const REQUEST: u16 = 1;
/// The protocol of the sockets that are looked up (`IPPROTO_TCP`).
const TCP: u8 = 6;
/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Bytes of `struct inet_diag_req_v2`.
const REQUEST_LENGTH: usize = 56;
/// Offset of `idiag_uid` in a message with a `struct inet_diag_msg`.
const UID: usize = HEADER + 64;

/// Encodes the request for one socket (sock_diag(7), `inet_diag_req_v2`). Its source is the remote end of our
/// connection.
fn encode_request(remote: SocketAddr, local: SocketAddr, number: u32) -> Option<Vec<u8>> {
    let (remote_ip, local_ip) = (remote.ip().to_canonical(), local.ip().to_canonical());
    let family = match (remote_ip, local_ip) {
        (IpAddr::V4(_), IpAddr::V4(_)) => AddressFamily::INET,
        (IpAddr::V6(_), IpAddr::V6(_)) => AddressFamily::INET6,
        _ => return None,
    };
    let length = u32::try_from(HEADER + REQUEST_LENGTH).ok()?;
    let mut message = Vec::with_capacity(HEADER + REQUEST_LENGTH);
    message.extend(length.to_ne_bytes());
    message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    message.extend(number.to_ne_bytes());
    message.extend(0_u32.to_ne_bytes());
    message.extend([u8::try_from(family.as_raw()).ok()?, TCP, 0, 0]);
    // In any state.
    message.extend(u32::MAX.to_ne_bytes());
    message.extend(remote.port().to_be_bytes());
    message.extend(local.port().to_be_bytes());
    message.extend(to_16_bytes(remote_ip));
    message.extend(to_16_bytes(local_ip));
    // On any interface, with any cookie.
    message.extend(0_u32.to_ne_bytes());
    message.extend([0xff; 8]);
    Some(message)
}

fn to_16_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V6(address) => address.octets(),
    }
}

/// A reply of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct DiagReply {
    /// The sequence number of the request.
    number: u32,
    /// None if the socket does not exist.
    uid: Option<u32>,
}

fn parse(message: &[u8]) -> Option<DiagReply> {
    let four = |at: usize| message.get(at..at + 4)?.try_into().ok();
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    let number = u32::from_ne_bytes(four(8)?);
    // Any other type is an error.
    let uid = if kind == SOCK_DIAG_BY_FAMILY { four(UID).map(u32::from_ne_bytes) } else { None };
    Some(DiagReply { number, uid })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_owner_of_the_other_end_is_found() {
        let sources = Sources::open();
        let own = ClientSource::User(rustix::process::geteuid().as_raw());
        for address in ["127.0.0.1:0", "[::1]:0"] {
            // A host without IPv6 has no such loopback.
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, remote) = listener.accept().unwrap();
            let local = server.local_addr().unwrap();
            assert_eq!(sources.of(remote, local), own, "{address}");
            // A lookup works after an unread reply, and a missing socket has no owner.
            let elsewhere = SocketAddr::new(remote.ip(), 1);
            assert_eq!(sources.of(elsewhere, local), ClientSource::of_address(remote.ip()));
            assert_eq!(sources.of(remote, local), own);
            drop(client);
        }
    }

    #[test]
    fn a_network_of_ipv6_is_one_source() {
        let of = |text: &str| ClientSource::of_address(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }

    proptest! {
        #[test]
        fn no_answer_breaks_the_parser(message in proptest::collection::vec(any::<u8>(), 0..120)) {
            let parsed = parse(&message);
            prop_assert!(parsed.is_none() || message.len() >= 12);
            prop_assert!(parsed.is_none_or(|answer| answer.uid.is_none()) || message.len() >= UID + 4);
        }
    }
}
