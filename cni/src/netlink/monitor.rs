//! Change notifications of a network namespace (rtnetlink(7)).

use std::io;
use std::net::UdpSocket as Datagrams;

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{SocketFlags, SocketType, sockopt};
use tokio::net::UdpSocket;

use super::attributes::attribute;
use super::messages::{RawMessage, messages};
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
    /// Parses the changes of received messages. `is_selected` selects links by index. Other links are reported only if they are ports of
    /// pods, or gone.
    pub(crate) fn all(datagram: &[u8], is_selected: impl Fn(u32) -> bool) -> Vec<Self> {
        messages(datagram).filter_map(|message| Self::of(&message, &is_selected)).collect()
    }

    fn of(message: &RawMessage<'_>, is_selected: &impl Fn(u32) -> bool) -> Option<Self> {
        // linux/rtnetlink.h.
        const RTM_NEWLINK: u16 = 16;
        const RTM_DELLINK: u16 = 17;
        const RTM_DELADDR: u16 = 21;
        const RTM_NEWNETCONF: u16 = 80;
        let (kind, body) = (message.header.message_type, message.body);
        // `struct ifinfomsg` and `struct ifaddrmsg` begin with the family and have the link's index after four bytes.
        let family = AddressFamily::from(*body.first()?);
        match kind {
            RTM_NEWNETCONF => return not_forwarding(family, body.get(4..)?),
            RTM_NEWLINK | RTM_DELLINK | RTM_DELADDR => {}
            _ => return None,
        }
        let index = u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?);
        // A bridge's messages about its ports do not describe links.
        if kind != RTM_DELADDR && family == AddressFamily::Bridge {
            return None;
        }
        match kind {
            RTM_NEWLINK if !is_selected(index) => port(index, body),
            RTM_DELADDR if !is_selected(index) => None,
            RTM_DELLINK => Some(Self::LinkGone(index)),
            RTM_DELADDR => Some(Self::AddressGone(index)),
            _ => match NetlinkMessage::<RouteNetlinkMessage>::deserialize(message.whole).ok()?.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                    Some(Self::Link(Box::new(describe(&link))))
                }
                _ => None,
            },
        }
    }
}

// Attributes of links (linux/if_link.h) and of forwarding settings (linux/netconf.h).
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_IFALIAS: u16 = 20;
const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_FORWARDING: u16 = 2;

/// Parses the state of the host end of a pod's veth pair. The attributes are read in place: this runs for every change of every
/// link of the host.
fn port(index: u32, body: &[u8]) -> Option<Change> {
    const IFF_UP: u32 = 1;
    let flags = u32::from_ne_bytes(body.get(8..12)?.try_into().ok()?);
    let attributes = body.get(16..)?;
    let value = |kind| attribute(attributes, kind);
    if !value(IFLA_IFNAME)?.starts_with(HOST_LINK_PREFIX.as_bytes()) {
        return None;
    }
    if flags & IFF_UP != 0 && value(IFLA_MASTER).is_some() {
        return Some(Change::PortConnected(index));
    }
    let alias = std::str::from_utf8(value(IFLA_IFALIAS)?).ok()?;
    let pod = crate::names::pod_of_alias(alias.trim_end_matches('\0'))?;
    Some(Change::PortDisconnected { index, pod: pod.to_owned() })
}

/// Parses `RTM_NEWNETCONF` (linux/netconf.h), which rtnetlink's crates do not support.
fn not_forwarding(family: AddressFamily, attributes: &[u8]) -> Option<Change> {
    /// All links; -2 is the default for new links.
    const NETCONFA_IFINDEX_ALL: i32 = -1;
    let v4 = match family {
        AddressFamily::Inet => true,
        AddressFamily::Inet6 => false,
        _ => return None,
    };
    let number = |kind: u16| -> Option<i32> {
        let value = attribute(attributes, kind)?;
        Some(i32::from_ne_bytes(value.get(..4)?.try_into().ok()?))
    };
    match (number(NETCONFA_IFINDEX)?, number(NETCONFA_FORWARDING)?) {
        (_, forwarding) if forwarding != 0 => None,
        (NETCONFA_IFINDEX_ALL, _) => Some(Change::NotForwarding { link: None, v4 }),
        (link, _) => u32::try_from(link).ok().map(|link| Change::NotForwarding { link: Some(link), v4 }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::attributes::Attributes;
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
            let mut attributes = Attributes::default();
            attributes.bytes(IFLA_IFNAME, format!("{name}\0").as_bytes());
            if controller {
                attributes.bytes(IFLA_MASTER, &3_u32.to_ne_bytes());
            }
            attributes.bytes(IFLA_IFALIAS, format!("{alias}\0").as_bytes());
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
        let mut attributes = Attributes::default();
        attributes.bytes(NETCONFA_IFINDEX, &(-1_i32).to_ne_bytes());
        attributes.bytes(NETCONFA_FORWARDING, &0_i32.to_ne_bytes());
        let all = not_forwarding(AddressFamily::Inet, attributes.as_bytes());
        assert_eq!(all, Some(Change::NotForwarding { link: None, v4: true }));
        let mut attributes = Attributes::default();
        attributes.bytes(NETCONFA_IFINDEX, &7_i32.to_ne_bytes());
        attributes.bytes(NETCONFA_FORWARDING, &0_i32.to_ne_bytes());
        let one = not_forwarding(AddressFamily::Inet6, attributes.as_bytes());
        assert_eq!(one, Some(Change::NotForwarding { link: Some(7), v4: false }));
    }
}
