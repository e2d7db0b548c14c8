//! Links, addresses and routes over one netlink socket (rtnetlink(7)). The only user of the rtnetlink crate, whose
//! interface changes often.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressFlags};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkMessage,
};
use netlink_packet_route::route::RouteMessage;
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::{Context, Error, Result};

/// `ENODEV`, `EEXIST`.
const ENODEV: i32 = -19;
const EEXIST: i32 = -17;

/// A link as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) mac: String,
    pub(crate) mtu: u32,
}

/// A netlink socket in one network namespace.
#[derive(Clone, Debug)]
pub(crate) struct Netlink {
    handle: Handle,
}

impl Netlink {
    /// A socket in the namespace of the calling thread.
    pub(crate) fn open() -> Result<Self> {
        let (connection, handle, _messages) = rtnetlink::new_connection().doing("open a netlink socket")?;
        // It ends with the last handle.
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// A link by its name.
    pub(crate) async fn link(&self, name: &str) -> Result<Option<Link>> {
        let stream = self.handle.link().get().match_name(name.to_owned()).execute();
        let mut stream = std::pin::pin!(stream);
        match stream.try_next().await {
            Ok(message) => Ok(message.map(|message| describe(&message))),
            Err(error) if code(&error) == ENODEV => Ok(None),
            Err(error) => Err(error).doing(format!("look for link {name}")),
        }
    }

    /// A link that must be there.
    pub(crate) async fn existing(&self, name: &str) -> Result<Link> {
        let link = self.link(name).await?;
        link.ok_or_else(|| Error::Invalid(format!("there is no link {name}")))
    }

    /// Makes a bridge; one of that name that is there already is taken.
    pub(crate) async fn add_bridge(&self, name: &str, mtu: Option<u32>) -> Result<()> {
        let mut bridge = LinkBridge::new(name);
        if let Some(mtu) = mtu {
            bridge = bridge.mtu(mtu);
        }
        match self.handle.link().add(bridge.build()).execute().await {
            Err(error) if code(&error) == EEXIST => Ok(()),
            added => added.doing(format!("add bridge {name}")),
        }
    }

    /// Makes a veth pair: the host's end on a bridge, the pod's end in its namespace under its final name.
    pub(crate) async fn add_veth(
        &self,
        host: &str,
        pod: &str,
        netns: BorrowedFd<'_>,
        bridge: u32,
        mtu: Option<u32>,
    ) -> Result<()> {
        let mut peer: LinkMessageBuilder<LinkUnspec> =
            LinkMessageBuilder::<LinkUnspec>::new().name(pod.to_owned()).setns_by_fd(netns.as_raw_fd());
        let mut veth = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(host.to_owned())
            .controller(bridge);
        if let Some(mtu) = mtu {
            peer = peer.mtu(mtu);
            veth = veth.mtu(mtu);
        }
        let veth = veth.set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())));
        self.handle.link().add(veth.build()).execute().await.doing(format!("add veth {host}"))
    }

    /// Brings a link up, with promiscuous mode where asked for.
    pub(crate) async fn set_up(&self, index: u32, promiscuous: bool) -> Result<()> {
        let mut message = LinkUnspec::new_with_index(index).up();
        if promiscuous {
            message = message.promiscuous(true);
        }
        self.handle.link().set(message.build()).execute().await.doing(format!("set link {index} up"))
    }

    /// Takes a port off its bridge and down: nothing reaches the pod any more. Costs a fraction of a removal, which
    /// waits for every processor (RCU, 20 ms).
    pub(crate) async fn cut_off(&self, index: u32) -> Result<()> {
        let message = LinkUnspec::new_with_index(index).nocontroller().down();
        self.handle.link().set(message.build()).execute().await.doing(format!("set link {index} down"))
    }

    /// Lets a port send back what came in by it: a pod reaches itself over its own service.
    pub(crate) async fn set_hairpin(&self, index: u32) -> Result<()> {
        let message = LinkUnspec::new_with_index(index)
            .set_port_kind(InfoPortKind::Bridge)
            .set_port_data(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)]));
        let request = self.handle.link().set_port(message.build());
        request.execute().await.doing(format!("set hairpin mode of link {index}"))
    }

    /// Removes a link; one that is gone is removed already.
    pub(crate) async fn remove(&self, name: &str) -> Result<()> {
        let Some(link) = self.link(name).await? else { return Ok(()) };
        match self.handle.link().del(link.index).execute().await {
            Err(error) if code(&error) == ENODEV => Ok(()),
            removed => removed.doing(format!("remove link {name}")),
        }
    }

    /// Gives a link an address that is usable at once; one that it has already is kept.
    pub(crate) async fn add_address(&self, index: u32, address: IpNet) -> Result<()> {
        let mut request = self.handle.address().add(index, address.addr(), address.prefix_len()).replace();
        if address.addr().is_ipv6() {
            request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        request.execute().await.doing(format!("add address {address} to link {index}"))
    }

    /// Adds a route.
    pub(crate) async fn add_route(&self, index: u32, to: IpNet, gateway: Option<IpAddr>) -> Result<()> {
        let message = match to {
            IpNet::V4(to) => {
                let route = RouteMessageBuilder::<Ipv4Addr>::new()
                    .destination_prefix(to.network(), to.prefix_len())
                    .output_interface(index);
                match gateway {
                    Some(IpAddr::V4(gateway)) => route.gateway(gateway).build(),
                    _ => on_link(route.build()),
                }
            }
            IpNet::V6(to) => {
                let route = RouteMessageBuilder::<Ipv6Addr>::new()
                    .destination_prefix(to.network(), to.prefix_len())
                    .output_interface(index);
                match gateway {
                    Some(IpAddr::V6(gateway)) => route.gateway(gateway).build(),
                    _ => route.build(),
                }
            }
        };
        match self.handle.route().add(message).execute().await {
            Err(error) if code(&error) == EEXIST => Ok(()),
            added => added.doing(format!("add route to {to}")),
        }
    }
}

fn on_link(mut route: RouteMessage) -> RouteMessage {
    route.header.scope = netlink_packet_route::route::RouteScope::Link;
    route
}

/// The errno of a refused request, negative as the kernel sends it; 0 for any other error.
fn code(error: &rtnetlink::Error) -> i32 {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.raw_code(),
        _ => 0,
    }
}

fn describe(message: &LinkMessage) -> Link {
    let mut link = Link { index: message.header.index, mac: String::new(), mtu: 0 };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(mac) => {
                link.mac = mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":");
            }
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            _ => {}
        }
    }
    link
}
