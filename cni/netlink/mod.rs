//! Links, addresses and routes over one netlink socket (rtnetlink(7)). The only user of the rtnetlink crate, whose
//! interface changes often.
//!
//! * this file: the socket, and links as they are
//! * [`direct`]: requests without this, on the calling thread
//! * [`duplicates`]: addresses that somebody else has
//! * [`links`]: making and changing links; [`routes`]: addresses, routes, rules; [`traffic`]: queues and filters

pub(crate) mod direct;
pub(crate) mod duplicates;
pub(crate) mod links;
pub(crate) mod routes;
pub(crate) mod traffic;

use futures_util::TryStreamExt;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::Handle;

use crate::{Context, Error, Result};

pub(super) const ENOENT: i32 = -2;
pub(super) const ESRCH: i32 = -3;
pub(super) const EEXIST: i32 = -17;
pub(super) const ENODEV: i32 = -19;
pub(super) const EADDRNOTAVAIL: i32 = -99;

/// A link as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mac: Vec<u8>,
    pub(crate) mtu: u32,
    /// `veth`, `bridge`; none of a physical one.
    pub(crate) kind: Option<InfoKind>,
    pub(crate) alias: Option<String>,
    pub(crate) up: bool,
    pub(crate) promiscuous: bool,
    pub(crate) all_multicast: bool,
    pub(crate) queue_length: u32,
    /// The link that it is a part of (VLAN, macvlan), or a veth's other end.
    pub(crate) parent: Option<u32>,
    /// The bridge or VRF that it belongs to.
    pub(crate) controller: Option<u32>,
    /// The table of a VRF.
    pub(crate) table: Option<u32>,
}

impl Link {
    /// The hardware address in hexadecimal.
    pub(crate) fn mac_text(&self) -> String {
        self.mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
    }
}

/// A netlink socket in one network namespace.
#[derive(Clone, Debug)]
pub(crate) struct Netlink {
    pub(super) handle: Handle,
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

    /// A link by its number.
    pub(crate) async fn link_at(&self, index: u32) -> Result<Option<Link>> {
        let stream = self.handle.link().get().match_index(index).execute();
        let mut stream = std::pin::pin!(stream);
        match stream.try_next().await {
            Ok(message) => Ok(message.map(|message| describe(&message))),
            Err(error) if code(&error) == ENODEV => Ok(None),
            Err(error) => Err(error).doing(format!("look for link {index}")),
        }
    }

    /// A link that must be there.
    pub(crate) async fn existing(&self, name: &str) -> Result<Link> {
        let link = self.link(name).await?;
        link.ok_or_else(|| Error::Invalid(format!("there is no link {name}")))
    }

    /// All links.
    pub(crate) async fn links(&self) -> Result<Vec<Link>> {
        let stream = self.handle.link().get().execute();
        let links: Vec<LinkMessage> = stream.try_collect().await.doing("list links")?;
        Ok(links.iter().map(describe).collect())
    }
}

/// The errno of a refused request, negative as the kernel sends it; 0 for any other error.
pub(super) fn code(error: &rtnetlink::Error) -> i32 {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.raw_code(),
        _ => 0,
    }
}

fn describe(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        up: flags.contains(LinkFlags::Up),
        promiscuous: flags.contains(LinkFlags::Promisc),
        all_multicast: flags.contains(LinkFlags::Allmulti),
        ..Link::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(mac) => link.mac.clone_from(mac),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
            LinkAttribute::TxQueueLen(length) => link.queue_length = *length,
            LinkAttribute::Link(parent) => link.parent = Some(*parent),
            LinkAttribute::Controller(controller) => link.controller = Some(*controller),
            LinkAttribute::LinkInfo(infos) => describe_kind(&mut link, infos),
            _ => {}
        }
    }
    link
}

fn describe_kind(link: &mut Link, infos: &[LinkInfo]) {
    use netlink_packet_route::link::{InfoData, InfoVrf};
    for info in infos {
        match info {
            LinkInfo::Kind(kind) => link.kind = Some(kind.clone()),
            LinkInfo::Data(InfoData::Vrf(parts)) => {
                link.table = parts.iter().find_map(|part| match part {
                    InfoVrf::TableId(table) => Some(*table),
                    _ => None,
                });
            }
            _ => {}
        }
    }
}
