//! Links, addresses and routes over netlink (rtnetlink(7)). The only user of the rtnetlink crate, whose interface changes
//! often.
//!
//! * this file: the sockets of a network namespace, and links as they are
//! * [`socket`]: one socket; [`direct`]: what a thread does that has entered a pod's namespace
//! * [`monitor`]: what changes; [`duplicates`]: addresses that somebody else has
//! * [`links`]: making and changing links; [`routes`]: addresses, routes, rules; [`traffic`]: queues and filters;
//!   [`neighbours`]: what hosts remember of each other

pub(crate) mod direct;
pub(crate) mod duplicates;
pub(crate) mod links;
pub(crate) mod monitor;
pub(crate) mod neighbours;
pub(crate) mod routes;
pub(crate) mod socket;
pub(crate) mod traffic;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    BridgePortState, InfoBridgePort, InfoKind, InfoPortData, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rustix::io::Errno;
use socket::{Ask, Socket};

use crate::{Context, Error, Result, netns};

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
    /// It is a port of a bridge, and the bridge passes frames on by it.
    pub(crate) forwards: bool,
}

impl Link {
    /// The hardware address in hexadecimal.
    pub(crate) fn mac_text(&self) -> String {
        self.mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
    }
}

/// A network namespace, by its netlink sockets: each is one user's as long as that has it. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Netlink {
    place: Arc<OwnedFd>,
    idle: Arc<Mutex<Vec<Socket>>>,
}

impl Netlink {
    /// The namespace of the calling thread.
    pub(crate) fn open() -> Result<Self> {
        let place = File::open("/proc/thread-self/ns/net").doing("open the thread's network namespace")?;
        let socket = Socket::open().doing("open a netlink socket")?;
        Ok(Self { place: Arc::new(place.into()), idle: Arc::new(Mutex::new(vec![socket])) })
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Socket>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works with a socket, away from the threads that answer requests: the kernel may let a request wait for others.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Socket) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let own = self.clone();
        let joined = tokio::task::spawn_blocking(move || own.here(work).map_err(io::Error::other));
        joined.await.map_err(io::Error::other).and_then(|worked| worked?)
    }

    /// Makes several requests in one visit of a blocking thread: a visit costs more than most requests.
    pub(crate) async fn visit<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Socket) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.with(move |socket| Ok(work(socket))).await.doing("run work with links")?
    }

    /// The same on the calling thread, which must be one that may block.
    ///
    /// # Errors
    /// A socket cannot be opened. `work` is not called then.
    pub(crate) fn here<T>(&self, work: impl FnOnce(&mut Socket) -> T) -> Result<T> {
        /// More are never in use at once but for a moment.
        const KEPT: usize = 16;
        let idle = self.idle().pop();
        let mut socket = match idle {
            Some(socket) => socket,
            None => {
                netns::on_a_thread_in(self.place.as_fd(), || Socket::open().doing("open a netlink socket"))?
            }
        };
        let worked = work(&mut socket);
        let mut idle = self.idle();
        if !socket.confused && idle.len() < KEPT {
            idle.push(socket);
        }
        Ok(worked)
    }

    /// Asks for one thing.
    async fn ask(&self, ask: Ask, message: RouteNetlinkMessage) -> socket::Answer {
        self.with(move |socket| socket.ask(ask, message)).await
    }

    /// Everything of a kind.
    async fn list(&self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.with(move |socket| socket.list(&message)).await
    }

    /// A link by its name.
    pub(crate) async fn link(&self, name: &str) -> Result<Option<Link>> {
        found(self.ask(Ask::Get, by_name(name)).await).doing_netlink(format!("look for link {name}"))
    }

    /// A link by its number.
    pub(crate) async fn link_at(&self, index: u32) -> Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let answer = self.ask(Ask::Get, RouteNetlinkMessage::GetLink(message)).await;
        found(answer).doing_netlink(format!("look for link {index}"))
    }

    /// A link that must be there.
    pub(crate) async fn existing(&self, name: &str) -> Result<Link> {
        self.link(name).await?.ok_or_else(|| no_link(name))
    }

    /// All links.
    pub(crate) async fn links(&self) -> Result<Vec<Link>> {
        let all = self.list(RouteNetlinkMessage::GetLink(LinkMessage::default())).await;
        Ok(all.doing_netlink("list links")?.iter().filter_map(link_of).collect())
    }
}

fn no_link(name: &str) -> Error {
    Error::Invalid(format!("link {name} not found"))
}

fn by_name(name: &str) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    RouteNetlinkMessage::GetLink(message)
}

/// The link of an answer; `None` where there is none.
fn found(answer: socket::Answer) -> io::Result<Option<Link>> {
    match answer {
        Err(error) if is(&error, Errno::NODEV) => Ok(None),
        Err(error) => Err(error),
        Ok(message) => Ok(message.as_ref().and_then(link_of)),
    }
}

fn link_of(message: &RouteNetlinkMessage) -> Option<Link> {
    match message {
        RouteNetlinkMessage::NewLink(link) => Some(describe(link)),
        _ => None,
    }
}

/// Whether the kernel has refused something for this reason.
pub(super) fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

/// What is done already when the kernel refuses it so.
pub(super) fn unless<T: Default>(answer: io::Result<T>, errno: Errno) -> io::Result<T> {
    match answer {
        Err(error) if is(&error, errno) => Ok(T::default()),
        answer => answer,
    }
}

/// Says what a request was to do.
pub(super) trait Refused<T> {
    fn doing_netlink(self, action: impl Into<String>) -> Result<T>;
}

impl<T> Refused<T> for io::Result<T> {
    fn doing_netlink(self, action: impl Into<String>) -> Result<T> {
        self.map_err(|source| Error::Netlink { action: action.into(), source })
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
            LinkInfo::PortData(InfoPortData::BridgePort(parts)) => {
                link.forwards = parts.contains(&InfoBridgePort::State(BridgePortState::Forwarding));
            }
            _ => {}
        }
    }
}
