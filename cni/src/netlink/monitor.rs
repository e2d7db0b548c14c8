//! Change notifications of a network namespace (rtnetlink(7)).

use std::io;
use std::net::UdpSocket as Datagrams;

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{SocketFlags, SocketType, sockopt};
use tokio::net::UdpSocket;

use super::socket::header;
use super::{Link, describe};
use crate::names::HOST_LINK_PREFIX;

/// A group of notifications (`RTNLGRP_*` of linux/rtnetlink.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    Links,
    Addresses4,
    Addresses6,
    Settings4,
    Settings6,
}

impl Group {
    /// Returns the bit of the group in a socket's address.
    fn bit(self) -> u32 {
        let number = match self {
            Self::Links => 1,
            Self::Addresses4 => 5,
            Self::Addresses6 => 9,
            Self::Settings4 => 24,
            Self::Settings6 => 25,
        };
        1 << (number - 1)
    }
}

/// Received notifications.
#[derive(Debug)]
pub(crate) enum Notification {
    /// A datagram of messages.
    Messages(Vec<u8>),
    /// Notifications were lost because the socket's buffer was full.
    Lost,
}

/// A socket that receives notifications.
#[derive(Debug)]
pub(crate) struct Monitor {
    /// tokio only waits for the socket, which is the same for UDP and for other datagram sockets.
    socket: UdpSocket,
}

impl Monitor {
    /// Opens the socket in the network namespace of the calling thread. Needs a tokio runtime.
    pub(crate) fn open(groups: &[Group]) -> io::Result<Self> {
        /// The buffer size: enough for some hundred pods that are attached or detached together.
        const ROOM: usize = 2 << 20;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // NETLINK_ROUTE is the default protocol of a netlink socket.
        let family = rustix::net::AddressFamily::NETLINK;
        let socket = rustix::net::socket_with(family, SocketType::RAW, flags, None)?;
        // Only root may set this size. With a smaller buffer, more notifications are lost, and more is checked again.
        let _without_right = sockopt::set_socket_recv_buffer_size_force(&socket, ROOM);
        let groups = groups.iter().fold(0, |all, group| all | group.bit());
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, groups))?;
        Ok(Self { socket: UdpSocket::from_std(Datagrams::from(socket))? })
    }

    /// Returns the next unread notifications, if there are any. They include every change that was made before the
    /// call: the kernel sends notifications before it answers the request of a change.
    pub(crate) fn receive(&self) -> Option<Notification> {
        /// Larger than any message about a link.
        const LARGEST: usize = 64 << 10;
        let mut buffer = Vec::with_capacity(LARGEST);
        // Read from the socket directly: tokio may not yet have noticed that it is readable.
        match rustix::net::recv(
            &self.socket,
            rustix::buffer::spare_capacity(&mut buffer),
            rustix::net::RecvFlags::DONTWAIT,
        ) {
            Ok(_) => Some(Notification::Messages(buffer)),
            Err(rustix::io::Errno::AGAIN) => None,
            Err(rustix::io::Errno::INTR) => self.receive(),
            Err(_) => Some(Notification::Lost),
        }
    }

    /// Waits until notifications may be available.
    pub(crate) async fn changed(&self) -> io::Result<()> {
        loop {
            self.socket.readable().await?;
            // Check that there is data: otherwise tokio would report the socket as readable forever.
            let seen = self.socket.try_io(tokio::io::Interest::READABLE, || {
                let flags = rustix::net::RecvFlags::DONTWAIT | rustix::net::RecvFlags::PEEK;
                match rustix::net::recv(&self.socket, &mut [0_u8; 1][..], flags) {
                    Err(rustix::io::Errno::AGAIN) => Err(io::ErrorKind::WouldBlock.into()),
                    _ => Ok(()),
                }
            });
            if seen.is_ok() {
                return Ok(());
            }
        }
    }

    /// Waits for the next notifications.
    pub(crate) async fn next(&self) -> io::Result<Notification> {
        loop {
            if let Some(heard) = self.receive() {
                return Ok(heard);
            }
            self.changed().await?;
        }
    }
}

/// A relevant change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The current state of a link.
    Link(Box<Link>),
    /// A link was removed.
    LinkGone(u32),
    /// A link has lost an address.
    AddressGone(u32),
    /// The host end of a pod's veth pair is up and has a controller.
    PortConnected(u32),
    /// The host end of a pod's veth pair is down or has no controller. Every new one is, until its set-up is complete.
    PortDisconnected { index: u32, pod: String },
    /// Forwarding was disabled for a link, or for all links.
    NotForwarding { link: Option<u32>, v4: bool },
}

impl Change {
    /// Parses the changes of received messages. `wanted` selects links by index. Other links are reported only if they are ports of
    /// pods, or gone.
    pub(crate) fn all(messages: &[u8], wanted: impl Fn(u32) -> bool) -> Vec<Self> {
        let mut changes = Vec::new();
        let mut rest = messages;
        while let Some(header) = header(rest) {
            let length = usize::try_from(header.length).unwrap_or(usize::MAX);
            let Some(message) = rest.get(..length) else { break };
            changes.extend(Self::of(header.message_type, message, &wanted));
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        changes
    }

    fn of(kind: u16, message: &[u8], wanted: &impl Fn(u32) -> bool) -> Option<Self> {
        // linux/rtnetlink.h.
        const NEW_LINK: u16 = 16;
        const DELETE_LINK: u16 = 17;
        const DELETE_ADDRESS: u16 = 21;
        const NEW_SETTINGS: u16 = 80;
        let body = message.get(16..)?;
        // `struct ifinfomsg` and `struct ifaddrmsg` begin with the family and have the link's index after four bytes.
        let family = AddressFamily::from(*body.first()?);
        match kind {
            NEW_SETTINGS => return not_forwarding(family, body.get(4..)?),
            NEW_LINK | DELETE_LINK | DELETE_ADDRESS => {}
            _ => return None,
        }
        let index = u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?);
        // A bridge's messages about its ports do not describe links.
        if kind != DELETE_ADDRESS && family == AddressFamily::Bridge {
            return None;
        }
        match kind {
            NEW_LINK if !wanted(index) => port(index, body),
            DELETE_ADDRESS if !wanted(index) => None,
            DELETE_LINK => Some(Self::LinkGone(index)),
            DELETE_ADDRESS => Some(Self::AddressGone(index)),
            _ => match NetlinkMessage::<RouteNetlinkMessage>::deserialize(message).ok()?.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                    Some(Self::Link(Box::new(describe(&link))))
                }
                _ => None,
            },
        }
    }
}

/// Parses the state of the host end of a pod's veth pair. The attributes are read in place: this runs for every change of every
/// link of the host.
fn port(index: u32, body: &[u8]) -> Option<Change> {
    // linux/if_link.h, linux/if.h.
    const NAME: u16 = 3;
    const CONTROLLER: u16 = 10;
    const ALIAS: u16 = 20;
    const UP: u32 = 1;
    let flags = u32::from_ne_bytes(body.get(8..12)?.try_into().ok()?);
    let attributes = body.get(16..)?;
    let value = |kind| crate::attributes::attribute(attributes, kind);
    if !value(NAME)?.starts_with(HOST_LINK_PREFIX.as_bytes()) {
        return None;
    }
    if flags & UP != 0 && value(CONTROLLER).is_some() {
        return Some(Change::PortConnected(index));
    }
    let alias = std::str::from_utf8(value(ALIAS)?).ok()?;
    let pod = crate::names::pod_of_alias(alias.trim_end_matches('\0'))?;
    Some(Change::PortDisconnected { index, pod: pod.to_owned() })
}

/// Parses `RTM_NEWNETCONF` (linux/netconf.h), which rtnetlink's crates do not support.
fn not_forwarding(family: AddressFamily, attributes: &[u8]) -> Option<Change> {
    const INDEX: u16 = 1;
    const FORWARDING: u16 = 2;
    /// `NETCONFA_IFINDEX_ALL`; -2 is the default for new links.
    const ALL: i32 = -1;
    let v4 = match family {
        AddressFamily::Inet => true,
        AddressFamily::Inet6 => false,
        _ => return None,
    };
    let number = |kind: u16| -> Option<i32> {
        let value = crate::attributes::attribute(attributes, kind)?;
        Some(i32::from_ne_bytes(value.get(..4)?.try_into().ok()?))
    };
    match (number(INDEX)?, number(FORWARDING)?) {
        (_, forwarding) if forwarding != 0 => None,
        (ALL, _) => Some(Change::NotForwarding { link: None, v4 }),
        (link, _) => u32::try_from(link).ok().map(|link| Change::NotForwarding { link: Some(link), v4 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_reader_fail(bytes: Vec<u8>) {
            proptest::prop_assert!(Change::all(&bytes, |_| true).len() <= bytes.len());
        }
    }

    #[test]
    fn ports_of_pods_are_read_without_those_of_others() {
        let link = |flags: u32, name: &str, controller: bool, alias: &str| {
            let mut body = vec![0; 16];
            body[8..12].copy_from_slice(&flags.to_ne_bytes());
            let mut attributes = crate::attributes::Attributes::default();
            attributes.bytes(3, format!("{name}\0").as_bytes());
            if controller {
                attributes.bytes(10, &3_u32.to_ne_bytes());
            }
            attributes.bytes(20, format!("{alias}\0").as_bytes());
            body.extend_from_slice(attributes.as_bytes());
            port(7, &body)
        };
        let disconnected = Some(Change::PortDisconnected { index: 7, pod: "0123".to_owned() });
        assert_eq!(link(1, "bv0123", false, "berth net 0123"), disconnected);
        assert_eq!(link(0, "bv0123", true, "berth net 0123"), disconnected);
        assert_eq!(link(1, "bv0123", true, "berth net 0123"), Some(Change::PortConnected(7)));
        assert_eq!(link(1, "veth0", false, "berth net 0123"), None);
        assert_eq!(link(1, "bv0123", false, "other"), None);
    }

    #[test]
    fn settings_are_read() {
        let mut attributes = crate::attributes::Attributes::default();
        attributes.bytes(1, &(-1_i32).to_ne_bytes());
        attributes.bytes(2, &0_i32.to_ne_bytes());
        let all = not_forwarding(AddressFamily::Inet, attributes.as_bytes());
        assert_eq!(all, Some(Change::NotForwarding { link: None, v4: true }));
        let mut attributes = crate::attributes::Attributes::default();
        attributes.bytes(1, &7_i32.to_ne_bytes());
        attributes.bytes(2, &0_i32.to_ne_bytes());
        let one = not_forwarding(AddressFamily::Inet6, attributes.as_bytes());
        assert_eq!(one, Some(Change::NotForwarding { link: Some(7), v4: false }));
    }
}
