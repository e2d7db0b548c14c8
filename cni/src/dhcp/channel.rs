//! Sockets that send and receive messages on an interface in a pod's namespace. Messages are sent as UDP datagrams.
//! They are received below IP, because a server sends its first answer to an address that the interface does not have
//! yet (packet(7)).

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::BorrowedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, eth, sockopt};
use tokio::net::UdpSocket;

use super::message::{DhcpMessage, Sender};
use crate::{Context, Error, Result, netns};

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// The protocol number of UDP.
const UDP: u8 = 17;

/// The sockets of an interface.
#[derive(Debug)]
pub(super) struct Channel {
    out: UdpSocket,
    heard: UdpSocket,
    pub(super) hardware: [u8; 6],
    interface: String,
}

impl Channel {
    /// Opens the sockets of an existing interface.
    pub(super) async fn open(netns: BorrowedFd<'_>, interface: &str) -> Result<Self> {
        let name = interface.to_owned();
        netns::within(netns, move || {
            let hardware = hardware(&name)?;
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            // The socket receives from all interfaces: an answer is identified by its transaction and hardware address.
            let heard =
                rustix::net::socket_with(AddressFamily::PACKET, SocketType::DGRAM, flags, Some(eth::IP));
            let heard = heard.doing("open a packet socket")?;
            // tokio only waits for the socket and reads it, which is the same for UDP and for packet sockets.
            let heard = UdpSocket::from_std(heard.into()).doing("register a packet socket")?;
            Ok(Self { out: outgoing(&name)?, heard, hardware, interface: name })
        })
        .await
    }

    /// Sends a message to a server, or to the broadcast address.
    pub(super) async fn send(&self, message: &DhcpMessage, to: Ipv4Addr) -> Result<()> {
        let sent = self.out.send_to(&message.to_bytes(), SocketAddrV4::new(to, SERVER_PORT)).await;
        sent.map(drop).doing(format!("send to the DHCP server {to} through {}", self.interface))
    }

    /// Receives the next message of a server to this interface.
    pub(super) async fn receive(&self) -> Result<DhcpMessage> {
        loop {
            let mut buffer = [0; 2048];
            let length = self.heard.recv(&mut buffer).await;
            let length = length.doing(format!("receive from DHCP servers on {}", self.interface))?;
            let packet = buffer.get(..length).unwrap_or_default();
            let message = payload(packet).and_then(|bytes| DhcpMessage::parse(bytes).ok());
            if let Some(message) = message
                && message.from == Sender::Server
                && message.hardware == self.hardware
            {
                return Ok(message);
            }
        }
    }
}

/// A socket that sends through one interface, also broadcasts, and shares its port with other sockets of the pod.
fn outgoing(interface: &str) -> Result<UdpSocket> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None);
    let socket = socket.doing("open a UDP socket")?;
    sockopt::set_socket_reuseaddr(&socket, true).doing("set SO_REUSEADDR")?;
    sockopt::set_socket_broadcast(&socket, true).doing("set SO_BROADCAST")?;
    nix::sys::socket::setsockopt(
        &socket,
        nix::sys::socket::sockopt::BindToDevice,
        &OsString::from(interface),
    )
    .map_err(std::io::Error::from)
    .doing(format!("bind to {interface}"))?;
    let address = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT);
    rustix::net::bind(&socket, &address).doing("bind to the port of DHCP clients")?;
    UdpSocket::from_std(socket.into()).doing("register a UDP socket")
}

/// Returns the hardware address of an interface in the calling thread's namespace.
fn hardware(interface: &str) -> Result<[u8; 6]> {
    let mut all = nix::ifaddrs::getifaddrs().map_err(std::io::Error::from).doing("list interfaces")?;
    let link = all.find_map(|entry| {
        let link = entry.address.filter(|_| entry.interface_name == interface)?;
        Some(link.as_link_addr()?.addr())
    });
    match link {
        Some(address) => address.ok_or_else(|| {
            Error::Invalid(format!("interface {interface} has no Ethernet address, which DHCP requires"))
        }),
        None => Err(Error::Invalid(format!("interface {interface} not found"))),
    }
}

/// Returns the payload of a UDP packet over IPv4 from the server port to the client port. The checksum is not verified:
/// a packet that never leaves this host has none.
pub(super) fn payload(packet: &[u8]) -> Option<&[u8]> {
    let (&[version_and_length, _, length @ ..], _) = packet.split_first_chunk::<4>()?;
    let words = version_and_length & 0xf;
    let header = usize::from(words) * 4;
    let (fragment, rest) = packet.get(6..)?.split_first_chunk::<2>()?;
    // Fragments are ignored: neither "more fragments" nor an offset may be set.
    let whole = u16::from_be_bytes(*fragment) & 0x3fff == 0;
    let protocol = *rest.get(1)?;
    if version_and_length >> 4 != 4 || words < 5 || !whole || protocol != UDP {
        return None;
    }
    let datagram = packet.get(header..usize::from(u16::from_be_bytes(length)))?;
    let (&[a, b, c, d, e, f, _, _], _) = datagram.split_first_chunk::<8>()?;
    let [from, to, length] = [[a, b], [c, d], [e, f]].map(u16::from_be_bytes);
    ((from, to) == (SERVER_PORT, CLIENT_PORT)).then(|| datagram.get(8..usize::from(length)))?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet(from: u16, to: u16, content: &[u8], options: usize) -> Vec<u8> {
        let length = |extra: usize| u16::try_from(content.len() + extra).unwrap().to_be_bytes();
        let words = u8::try_from(5 + options).unwrap();
        let mut packet = vec![0x40 | words, 0];
        packet.extend(length(28 + options * 4));
        packet.extend([0, 0, 0x40, 0, 64, UDP, 0, 0]);
        packet.extend([10, 5, 0, 1, 255, 255, 255, 255]);
        packet.extend(vec![1; options * 4]);
        packet.extend([from.to_be_bytes(), to.to_be_bytes(), length(8), [0, 0]].concat());
        packet.extend(content);
        packet
    }

    #[test]
    fn only_complete_datagrams_of_a_server_are_accepted() {
        let good = packet(67, 68, b"text", 2);
        assert_eq!(payload(&good), Some(&b"text"[..]));
        // Ethernet pads short packets.
        assert_eq!(payload(&[&good[..], &[0; 9]].concat()), Some(&b"text"[..]));
        assert_eq!(payload(&good[..good.len() - 1]), None);
        assert_eq!(payload(&packet(53, 68, b"text", 0)), None);
        assert_eq!(payload(&packet(67, 53, b"text", 0)), None);
        for (place, value) in [(0, 0x67), (0, 0x43), (6, 0x20), (7, 1), (9, 6)] {
            let mut bad = good.clone();
            bad[place] = value;
            assert_eq!(payload(&bad), None, "{place}");
        }
    }

    proptest! {
        #[test]
        fn an_arbitrary_packet_does_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _never_panics = payload(&bytes);
        }
    }
}
