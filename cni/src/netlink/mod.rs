//! Netlink (netlink(7)): links, addresses and routes (rtnetlink(7)), and the transport of netfilter. Only this module
//! uses the rtnetlink crate, whose interface changes often.
//!
//! * this file: the sockets of a network namespace, and the state of links
//! * [`socket`]: one socket; [`direct`]: blocking requests, for a thread that has entered a pod's namespace
//! * [`monitor`]: change notifications; [`duplicates`]: duplicate address detection
//! * [`links`]: creating and changing links; [`addresses`], [`routes`], [`rules`]; [`traffic`]: queues and filters;
//!   [`neighbours`]: neighbour and bridge forwarding entries
//! * [`messages`], [`attributes`]: the encoding that all families share; [`netfilter`]: requests to netfilter's subsystems

pub(crate) mod addresses;
pub(crate) mod attributes;
pub(crate) mod direct;
pub(crate) mod duplicates;
pub(crate) mod links;
pub(crate) mod messages;
pub(crate) mod monitor;
pub(crate) mod neighbours;
pub(crate) mod netfilter;
pub(crate) mod routes;
pub(crate) mod rules;
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
use socket::{Operation, Socket};

use crate::{Context, Error, Result, netns};

/// The state of a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mac: Vec<u8>,
    pub(crate) mtu: u32,
    /// `veth`, `bridge` and so on; `None` for a physical link.
    pub(crate) kind: Option<InfoKind>,
    pub(crate) alias: Option<String>,
    pub(crate) up: bool,
    pub(crate) promiscuous: bool,
    pub(crate) all_multicast: bool,
    pub(crate) queue_length: u32,
    /// The parent of a VLAN or macvlan, or the other end of a veth pair.
    pub(crate) parent: Option<u32>,
    /// The bridge or VRF that it belongs to.
    pub(crate) controller: Option<u32>,
    /// The table of a VRF.
    pub(crate) table: Option<u32>,
    /// Whether it is a bridge port in the forwarding state.
    pub(crate) forwards: bool,
}

impl Link {
    /// The hardware address in hexadecimal.
    pub(crate) fn mac_text(&self) -> String {
        self.mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
    }
}

/// A network namespace and its idle netlink sockets. A socket has one user at a time. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Netlink {
    namespace: Arc<OwnedFd>,
    idle: Arc<Mutex<Vec<Socket>>>,
}

impl Netlink {
    /// Opens the namespace of the calling thread.
    pub(crate) fn open() -> Result<Self> {
        let namespace =
            File::open("/proc/thread-self/ns/net").doing("open the thread's network namespace")?;
        let socket = Socket::open().doing("open a netlink socket")?;
        Ok(Self { namespace: Arc::new(namespace.into()), idle: Arc::new(Mutex::new(vec![socket])) })
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Socket>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` with a socket on a blocking thread: in the kernel, a request may wait for others.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Socket) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (own, span) = (self.clone(), tracing::Span::current());
        let joined =
            tokio::task::spawn_blocking(move || span.in_scope(|| own.here(work)).map_err(io::Error::other));
        joined.await.map_err(io::Error::other).and_then(|result| result?)
    }

    /// Runs several requests on one blocking thread: the change of threads costs more than most requests.
    pub(crate) async fn visit<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Socket) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.with(move |socket| Ok(work(socket))).await.doing("run netlink requests")?
    }

    /// Like [`Self::visit`], on the calling thread, which must be allowed to block.
    ///
    /// # Errors
    /// A socket cannot be opened. `work` is not called then.
    pub(crate) fn here<T>(&self, work: impl FnOnce(&mut Socket) -> T) -> Result<T> {
        /// The number of idle sockets that are kept. More are rarely in use at the same time.
        const MAX_IDLE: usize = 16;
        let idle = self.idle().pop();
        let mut socket = match idle {
            Some(socket) => socket,
            None => netns::on_a_thread_in(self.namespace.as_fd(), || {
                Socket::open().doing("open a netlink socket")
            })?,
        };
        let result = work(&mut socket);
        let mut idle = self.idle();
        if !socket.out_of_sync && idle.len() < MAX_IDLE {
            idle.push(socket);
        }
        Ok(result)
    }

    /// Sends one request.
    async fn request(&self, operation: Operation, message: RouteNetlinkMessage) -> socket::Answer {
        self.with(move |socket| socket.request(operation, message)).await
    }

    /// Lists all objects of a kind.
    async fn list(&self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.with(move |socket| socket.list(&message)).await
    }

    /// Returns a link by its name.
    pub(crate) async fn link(&self, name: &str) -> Result<Option<Link>> {
        optional_link(self.request(Operation::Get, by_name(name)).await)
            .doing_netlink(format!("find link {name}"))
    }

    /// Returns a link by its index.
    pub(crate) async fn link_at(&self, index: u32) -> Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let answer = self.request(Operation::Get, RouteNetlinkMessage::GetLink(message)).await;
        optional_link(answer).doing_netlink(format!("find link {index}"))
    }

    /// Returns a link that must exist.
    pub(crate) async fn existing(&self, name: &str) -> Result<Link> {
        self.link(name).await?.ok_or_else(|| link_not_found(name))
    }

    /// Lists all links.
    pub(crate) async fn links(&self) -> Result<Vec<Link>> {
        let all = self.list(RouteNetlinkMessage::GetLink(LinkMessage::default())).await;
        Ok(all.doing_netlink("list links")?.iter().filter_map(link_of).collect())
    }
}

fn link_not_found(name: &str) -> Error {
    Error::Invalid(format!("link {name} not found"))
}

fn by_name(name: &str) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    RouteNetlinkMessage::GetLink(message)
}

/// Returns the link of an answer, or `None` if it does not exist.
fn optional_link(answer: socket::Answer) -> io::Result<Option<Link>> {
    match answer {
        Err(error) if is_errno(&error, Errno::NODEV) => Ok(None),
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

/// Whether the kernel refused a request with this error.
pub(super) fn is_errno(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

/// Treats an error as success: the request's effect already exists.
pub(super) fn unless_errno<T: Default>(answer: io::Result<T>, errno: Errno) -> io::Result<T> {
    match answer {
        Err(error) if is_errno(&error, errno) => Ok(T::default()),
        answer => answer,
    }
}

/// Whether the same request may succeed when it is repeated.
pub(super) fn is_transient(error: &io::Error) -> bool {
    let transient = [Errno::BUSY, Errno::INTR, Errno::NOBUFS, Errno::AGAIN].map(Errno::raw_os_error);
    error.kind() == io::ErrorKind::Interrupted
        || error.raw_os_error().is_some_and(|code| transient.contains(&code))
}

/// The kernel has answered when a send returns, but the answer cannot be read.
pub(crate) fn answer_lost() -> io::Error {
    io::Error::other("the kernel's answer was lost")
}

/// Adds the failed operation to an error.
pub(super) trait NetlinkContext<T> {
    fn doing_netlink(self, action: impl Into<String>) -> Result<T>;
}

impl<T> NetlinkContext<T> for io::Result<T> {
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
