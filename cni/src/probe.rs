//! Tries what the host's kernel supports, for `berth check`. Everything is created in the network namespace of the
//! calling thread, which must be a new one that ends afterwards.

use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};

use crate::netlink::socket::{Operation, Socket};
use crate::{Context as _, Result, nftables};

/// The kind of a network device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A pair of devices, each of which receives what the other sends.
    Veth,
    /// A switch.
    Bridge,
    /// A share of another device, separated by hardware address.
    Macvlan,
    /// A share of another device, separated by IP address.
    Ipvlan,
}

impl DeviceKind {
    /// Returns the name in `ip link` (ip-link(8)).
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Veth => "veth",
            Self::Bridge => "bridge",
            Self::Macvlan => "macvlan",
            Self::Ipvlan => "ipvlan",
        }
    }

    fn info(self) -> InfoKind {
        match self {
            Self::Veth => InfoKind::Veth,
            Self::Bridge => InfoKind::Bridge,
            Self::Macvlan => InfoKind::MacVlan,
            Self::Ipvlan => InfoKind::IpVlan,
        }
    }

    fn has_parent(self) -> bool {
        matches!(self, Self::Macvlan | Self::Ipvlan)
    }
}

/// Creates a device of a kind, on a veth pair if it needs a parent.
///
/// # Errors
/// The kernel does not support the kind.
pub fn device(kind: DeviceKind) -> Result<()> {
    /// The index of the parent.
    const PARENT: u32 = 1000;
    let mut socket = Socket::open().doing("open a netlink socket")?;
    if kind.has_parent() {
        create(&mut socket, DeviceKind::Veth, PARENT, None).doing("create a veth device")?;
    }
    let parent = kind.has_parent().then_some(PARENT);
    // With index 0, the kernel chooses one.
    create(&mut socket, kind, 0, parent).doing(format!("create a {} device", kind.name()))
}

fn create(socket: &mut Socket, kind: DeviceKind, index: u32, parent: Option<u32>) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind.info())]));
    link.attributes.extend(parent.map(LinkAttribute::Link));
    socket.request(Operation::Create, RouteNetlinkMessage::NewLink(link)).map(drop)
}

/// Creates a table with a rule that masquerades, as the pod network uses it.
///
/// # Errors
/// The kernel does not support nftables or the rule.
pub fn masquerade() -> Result<()> {
    nftables::try_masquerade().doing("create a rule")
}
