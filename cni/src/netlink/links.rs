//! Creates and changes links.

use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    BridgeVlanInfoFlags, InfoData, InfoKind, InfoVeth, IpVlanMode, LinkMessage, MacVlanMode,
};
use rtnetlink::{
    LinkBridge, LinkBridgeVlan, LinkDummy, LinkIfb, LinkIpVlan, LinkMacVlan, LinkMessageBuilder, LinkUnspec,
    LinkVeth, LinkVlan, LinkVrf,
};
use rustix::io::Errno;

use super::socket::Operation;
use super::{Netlink, NetlinkContext as _, unless_errno};
use crate::Result;

/// The parameters of a veth pair.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Veth<'a> {
    /// The name of the host's end.
    pub(crate) host: &'a str,
    /// The name of the pod's end.
    pub(crate) pod: &'a str,
    /// The namespace in which the pod's end is created, with its final name.
    pub(crate) netns: BorrowedFd<'a>,
    /// The bridge that the host's end is attached to.
    pub(crate) bridge: Option<u32>,
    /// The MTU of both ends.
    pub(crate) mtu: Option<u32>,
    /// The hardware address of the pod's end.
    pub(crate) mac: Option<&'a [u8]>,
    /// Whether the host's end is created up.
    pub(crate) up: bool,
}

/// The kind of a link in a pod.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// A share of a parent, separated by hardware address.
    MacVlan(u32, MacVlanMode),
    /// A share of a parent, separated by IP address.
    IpVlan(u32, IpVlanMode),
    /// A share of a parent, separated by VLAN tag.
    Vlan(u32, u16),
    /// A link without a parent.
    Dummy,
}

impl Netlink {
    /// Creates a bridge, unless a link of that name exists.
    pub(crate) async fn add_bridge(&self, name: &str, mtu: Option<u32>, vlans: bool) -> Result<()> {
        let mut bridge = LinkBridge::new(name);
        if let Some(mtu) = mtu {
            bridge = bridge.mtu(mtu);
        }
        if vlans {
            bridge = bridge.vlan_filtering(true);
        }
        let created = self.request(Operation::Create, RouteNetlinkMessage::NewLink(bridge.build())).await;
        unless_errno(created, Errno::EXIST).map(drop).doing_netlink(format!("add bridge {name}"))
    }

    async fn create(&self, link: LinkMessage, action: String) -> Result<()> {
        self.request(Operation::Create, RouteNetlinkMessage::NewLink(link))
            .await
            .map(drop)
            .doing_netlink(action)
    }

    async fn set(&self, link: LinkMessage, action: String) -> Result<()> {
        self.request(Operation::Change, RouteNetlinkMessage::SetLink(link))
            .await
            .map(drop)
            .doing_netlink(action)
    }

    /// Creates a veth pair.
    pub(crate) async fn add_veth(&self, pair: &Veth<'_>) -> Result<()> {
        let mut peer: LinkMessageBuilder<LinkUnspec> = LinkMessageBuilder::<LinkUnspec>::new()
            .name(pair.pod.to_owned())
            .setns_by_fd(pair.netns.as_raw_fd());
        let mut veth =
            LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth).name(pair.host.to_owned());
        if pair.up {
            veth = veth.up();
        }
        if let Some(bridge) = pair.bridge {
            veth = veth.controller(bridge);
        }
        if let Some(mtu) = pair.mtu {
            peer = peer.mtu(mtu);
            veth = veth.mtu(mtu);
        }
        if let Some(mac) = pair.mac {
            peer = peer.address(mac.to_vec());
        }
        let veth = veth.set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())));
        self.create(veth.build(), format!("add veth {}", pair.host)).await
    }

    /// Creates a link in a namespace.
    pub(crate) async fn add_in(
        &self,
        netns: BorrowedFd<'_>,
        name: &str,
        kind: Kind,
        mtu: Option<u32>,
        mac: Option<&[u8]>,
    ) -> Result<()> {
        fn finish<T>(
            mut link: LinkMessageBuilder<T>,
            netns: BorrowedFd<'_>,
            mtu: Option<u32>,
            mac: Option<&[u8]>,
        ) -> LinkMessage {
            link = link.setns_by_fd(netns.as_raw_fd());
            if let Some(mtu) = mtu {
                link = link.mtu(mtu);
            }
            if let Some(mac) = mac {
                link = link.address(mac.to_vec());
            }
            link.build()
        }
        let (message, kind) = match kind {
            Kind::MacVlan(parent, mode) => {
                (finish(LinkMacVlan::new(name, parent, mode), netns, mtu, mac), "macvlan")
            }
            Kind::IpVlan(parent, mode) => {
                (finish(LinkIpVlan::new(name, parent, mode), netns, mtu, mac), "ipvlan")
            }
            Kind::Vlan(parent, id) => (finish(LinkVlan::new(name, parent, id), netns, mtu, mac), "vlan"),
            Kind::Dummy => (finish(LinkDummy::new(name), netns, mtu, mac), "dummy"),
        };
        self.create(message, format!("add {kind} link {name}")).await
    }

    /// Creates a device that can queue the traffic which another link receives.
    pub(crate) async fn add_ifb(&self, name: &str, mtu: u32) -> Result<()> {
        let link = LinkIfb::new(name).mtu(mtu).up().build();
        self.create(link, format!("add ifb {name}")).await
    }

    /// Creates a VRF.
    pub(crate) async fn add_vrf(&self, name: &str, table: u32) -> Result<()> {
        let link = LinkVrf::new(name, table).up().build();
        self.create(link, format!("add vrf {name}")).await
    }

    /// Changes a link. `action` describes the change, for an error.
    pub(crate) async fn change(
        &self,
        index: u32,
        action: &str,
        change: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Result<()> {
        let message = change(LinkUnspec::new_with_index(index)).build();
        self.set(message, format!("{action} of link {index}")).await
    }

    /// Brings a link up, with promiscuous mode if requested.
    pub(crate) async fn set_up(&self, index: u32, promiscuous: bool) -> Result<()> {
        self.change(index, "set the state", |link| match promiscuous {
            true => link.up().promiscuous(true),
            false => link.up(),
        })
        .await
    }

    /// See [`super::socket::Socket::set_up_as`].
    pub(crate) async fn set_up_as(&self, index: u32, alias: &str) -> Result<()> {
        let alias = alias.to_owned();
        self.visit(move |links| links.set_up_as(index, &alias)).await
    }

    /// See [`super::socket::Socket::cut_off`].
    pub(crate) async fn cut_off(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        self.visit(move |links| links.cut_off(&name)).await
    }

    /// Moves a link to another namespace and renames it.
    pub(crate) async fn move_to(&self, index: u32, netns: BorrowedFd<'_>, name: &str) -> Result<()> {
        let netns = netns.as_raw_fd();
        self.change(index, "change the namespace", |link| {
            link.down().setns_by_fd(netns).name(name.to_owned())
        })
        .await
    }

    /// See [`super::socket::Socket::set_port`].
    pub(crate) async fn set_port(&self, index: u32, hairpin: bool, isolated: bool) -> Result<()> {
        self.visit(move |links| links.set_port(index, hairpin, isolated)).await
    }

    /// Adds a VLAN to a bridge port. If `untagged`, it is the VLAN of untagged packets.
    pub(crate) async fn add_port_vlan(&self, index: u32, id: u16, untagged: bool) -> Result<()> {
        let flags = match untagged {
            true => BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged,
            false => BridgeVlanInfoFlags::empty(),
        };
        let message = LinkBridgeVlan::new(index).vlan(id, flags).build();
        self.set(message, format!("add VLAN {id} to bridge port {index}")).await
    }

    /// Removes a VLAN from a bridge port.
    pub(crate) async fn remove_port_vlan(&self, index: u32, id: u16) -> Result<()> {
        let message = LinkBridgeVlan::new(index).vlan(id, BridgeVlanInfoFlags::empty()).build();
        let removed = self.request(Operation::Delete, RouteNetlinkMessage::DelLink(message)).await;
        removed.map(drop).doing_netlink(format!("remove VLAN {id} from bridge port {index}"))
    }

    /// Removes a link, if it exists.
    pub(crate) async fn remove(&self, name: &str) -> Result<()> {
        let Some(link) = self.link(name).await? else { return Ok(()) };
        let message = LinkUnspec::new_with_index(link.index).build();
        let removed = self.request(Operation::Delete, RouteNetlinkMessage::DelLink(message)).await;
        unless_errno(removed, Errno::NODEV).map(drop).doing_netlink(format!("remove link {name}"))
    }
}
