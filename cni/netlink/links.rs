//! Making and changing links.

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

use super::socket::Ask;
use super::{Netlink, Refused as _, unless};
use crate::Result;

/// A veth pair to make.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Veth<'a> {
    /// The host's end.
    pub(crate) host: &'a str,
    /// The pod's end.
    pub(crate) pod: &'a str,
    /// Where the pod's end is made, under its final name.
    pub(crate) netns: BorrowedFd<'a>,
    /// The bridge of the host's end.
    pub(crate) bridge: Option<u32>,
    /// Of both.
    pub(crate) mtu: Option<u32>,
    /// Of the pod's end.
    pub(crate) mac: Option<&'a [u8]>,
    /// Whether the host's end is up at once.
    pub(crate) up: bool,
}

/// What a link in a pod is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// Of a parent, by hardware addresses.
    MacVlan(u32, MacVlanMode),
    /// Of a parent, by IP addresses.
    IpVlan(u32, IpVlanMode),
    /// Of a parent, by a tag.
    Vlan(u32, u16),
    /// Of nothing.
    Dummy,
}

impl Netlink {
    /// Makes a bridge; one of that name that is there already is taken.
    pub(crate) async fn add_bridge(&self, name: &str, mtu: Option<u32>, vlans: bool) -> Result<()> {
        let mut bridge = LinkBridge::new(name);
        if let Some(mtu) = mtu {
            bridge = bridge.mtu(mtu);
        }
        if vlans {
            bridge = bridge.vlan_filtering(true);
        }
        let made = self.ask(Ask::Create, RouteNetlinkMessage::NewLink(bridge.build())).await;
        unless(made, Errno::EXIST).map(drop).doing_netlink(format!("add bridge {name}"))
    }

    async fn make(&self, link: LinkMessage, words: String) -> Result<()> {
        self.ask(Ask::Create, RouteNetlinkMessage::NewLink(link)).await.map(drop).doing_netlink(words)
    }

    async fn set(&self, link: LinkMessage, words: String) -> Result<()> {
        self.ask(Ask::Change, RouteNetlinkMessage::SetLink(link)).await.map(drop).doing_netlink(words)
    }

    /// Makes a veth pair.
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
        self.make(veth.build(), format!("add veth {}", pair.host)).await
    }

    /// Makes a link in a namespace.
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
        let (message, words) = match kind {
            Kind::MacVlan(parent, mode) => {
                (finish(LinkMacVlan::new(name, parent, mode), netns, mtu, mac), "macvlan")
            }
            Kind::IpVlan(parent, mode) => {
                (finish(LinkIpVlan::new(name, parent, mode), netns, mtu, mac), "ipvlan")
            }
            Kind::Vlan(parent, id) => (finish(LinkVlan::new(name, parent, id), netns, mtu, mac), "vlan"),
            Kind::Dummy => (finish(LinkDummy::new(name), netns, mtu, mac), "dummy"),
        };
        self.make(message, format!("add {words} link {name}")).await
    }

    /// Makes a device through which the traffic that comes in by another can be queued.
    pub(crate) async fn add_ifb(&self, name: &str, mtu: u32) -> Result<()> {
        let link = LinkIfb::new(name).mtu(mtu).up().build();
        self.make(link, format!("add ifb {name}")).await
    }

    /// Makes a VRF.
    pub(crate) async fn add_vrf(&self, name: &str, table: u32) -> Result<()> {
        let link = LinkVrf::new(name, table).up().build();
        self.make(link, format!("add vrf {name}")).await
    }

    /// Changes a link; the words tell what, for an error.
    pub(crate) async fn change(
        &self,
        index: u32,
        words: &str,
        change: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Result<()> {
        let message = change(LinkUnspec::new_with_index(index)).build();
        self.set(message, format!("{words} of link {index}")).await
    }

    /// Brings a link up, with promiscuous mode where asked for.
    pub(crate) async fn set_up(&self, index: u32, promiscuous: bool) -> Result<()> {
        self.change(index, "set the state", |link| match promiscuous {
            true => link.up().promiscuous(true),
            false => link.up(),
        })
        .await
    }

    /// See [`Socket::set_up_as`].
    pub(crate) async fn set_up_as(&self, index: u32, alias: &str) -> Result<()> {
        let alias = alias.to_owned();
        self.visit(move |links| links.set_up_as(index, &alias)).await
    }

    /// See [`Socket::cut_off`].
    pub(crate) async fn cut_off(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        self.visit(move |links| links.cut_off(&name)).await
    }

    /// Moves a link to another namespace, under a name.
    pub(crate) async fn move_to(&self, index: u32, netns: BorrowedFd<'_>, name: &str) -> Result<()> {
        let netns = netns.as_raw_fd();
        self.change(index, "change the namespace", |link| {
            link.down().setns_by_fd(netns).name(name.to_owned())
        })
        .await
    }

    /// See [`Socket::set_port`].
    pub(crate) async fn set_port(&self, index: u32, hairpin: bool, isolated: bool) -> Result<()> {
        self.visit(move |links| links.set_port(index, hairpin, isolated)).await
    }

    /// Lets a tag through a port of a bridge; `untagged` is the one of packets without.
    pub(crate) async fn add_port_vlan(&self, index: u32, id: u16, untagged: bool) -> Result<()> {
        let flags = match untagged {
            true => BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged,
            false => BridgeVlanInfoFlags::empty(),
        };
        let message = LinkBridgeVlan::new(index).vlan(id, flags).build();
        self.set(message, format!("add VLAN {id} to bridge port {index}")).await
    }

    /// Lets a tag through a port no more.
    pub(crate) async fn remove_port_vlan(&self, index: u32, id: u16) -> Result<()> {
        let message = LinkBridgeVlan::new(index).vlan(id, BridgeVlanInfoFlags::empty()).build();
        let removed = self.ask(Ask::Delete, RouteNetlinkMessage::DelLink(message)).await;
        removed.map(drop).doing_netlink(format!("remove VLAN {id} from bridge port {index}"))
    }

    /// Removes a link; one that is gone is removed already.
    pub(crate) async fn remove(&self, name: &str) -> Result<()> {
        let Some(link) = self.link(name).await? else { return Ok(()) };
        let message = LinkUnspec::new_with_index(link.index).build();
        let removed = self.ask(Ask::Delete, RouteNetlinkMessage::DelLink(message)).await;
        unless(removed, Errno::NODEV).map(drop).doing_netlink(format!("remove link {name}"))
    }
}
