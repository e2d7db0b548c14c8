//! Requests on the calling thread, for one that has entered a pod's namespace for nothing else. The kernel has answered when
//! the send returns, and does several requests of one datagram in their order (rtnetlink(7)): there is nobody to wait
//! for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::RouteProtocol;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rtnetlink::{AddressMessageBuilder, LinkUnspec};

use super::{EEXIST, ENODEV, Link, describe, routes};
use crate::result::CniResult;
use crate::{Context, Error, Result};

/// How many requests are sent at once: all their answers have room in the socket's buffer.
const TOGETHER: usize = 64;

/// A socket in the namespace of the thread that has opened it.
pub(crate) struct Direct {
    socket: Socket,
}

/// A request, with what it does for an error.
struct Request {
    message: RouteNetlinkMessage,
    flags: u16,
    words: String,
}

/// What the kernel says to one request.
struct Answer {
    /// Its place among those that were sent together.
    place: usize,
    payload: NetlinkPayload<RouteNetlinkMessage>,
}

impl Direct {
    /// In the namespace of the calling thread.
    pub(crate) fn open() -> Result<Self> {
        let open = || {
            let socket = Socket::new(NETLINK_ROUTE)?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok::<_, std::io::Error>(socket)
        };
        open().map(|socket| Self { socket }).doing("open a netlink socket")
    }

    /// A link that must be there.
    pub(crate) fn existing(&self, name: &str) -> Result<Link> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let request = Request {
            message: RouteNetlinkMessage::GetLink(message),
            flags: 0,
            words: format!("look for link {name}"),
        };
        let mut found = None;
        let answered = self.exchange(&[request], |answer| {
            if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) = answer.payload {
                found = Some(describe(&link));
            }
        });
        match answered {
            Err(Error::Netlink { source, .. }) if super::code(&source) == ENODEV => {}
            answered => answered?,
        }
        found.ok_or_else(|| Error::Invalid(format!("there is no link {name}")))
    }

    /// Gives a link the addresses and routes of a result, and brings it up.
    pub(crate) fn configure(&self, index: u32, result: &CniResult) -> Result<()> {
        let addresses = result.ips.iter().map(|ip| Request {
            message: RouteNetlinkMessage::NewAddress(address_message(index, ip.address)),
            flags: NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE,
            words: format!("add address {} to link {index}", ip.address),
        });
        let up = Request {
            message: RouteNetlinkMessage::SetLink(LinkUnspec::new_with_index(index).up().build()),
            flags: NLM_F_ACK,
            words: format!("set the state of link {index}"),
        };
        let routes = result.routes_with_gateways().map(|route| {
            let mut message = routes::message_of(index, &route, None);
            message.header.protocol = RouteProtocol::Boot;
            Request {
                message: RouteNetlinkMessage::NewRoute(message),
                flags: NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
                words: format!("add route to {}", route.dst),
            }
        });
        let requests: Vec<Request> = addresses.chain([up]).chain(routes).collect();
        requests.chunks(TOGETHER).try_for_each(|some| self.exchange(some, |_| {}))
    }

    /// Sends requests together and reads an answer to each; the first refusal is the error. What is there already is none.
    fn exchange(&self, requests: &[Request], mut take: impl FnMut(Answer)) -> Result<()> {
        let words =
            |place: usize| requests.get(place).map_or_else(String::new, |request| request.words.clone());
        let sent = self.socket.send(&datagram(requests), 0);
        sent.doing(words(0))?;
        let (mut answered, mut refused) = (0, None);
        while answered < requests.len() {
            for answer in self.receive().doing(words(answered))? {
                answered += 1;
                match answer.payload {
                    NetlinkPayload::Error(error) if error.code.is_some_and(|code| code.get() != EEXIST) => {
                        let (action, source) = (words(answer.place), rtnetlink::Error::NetlinkError(error));
                        refused = refused.or(Some(Error::Netlink { action, source }));
                    }
                    payload => take(Answer { payload, ..answer }),
                }
            }
        }
        refused.map_or(Ok(()), Err)
    }

    fn receive(&self) -> std::io::Result<Vec<Answer>> {
        /// More than any one message about a link.
        const LARGEST: usize = 32 << 10;
        let mut buffer = Vec::with_capacity(LARGEST);
        self.socket.recv(&mut buffer, 0)?;
        let (mut answers, mut rest) = (Vec::new(), buffer.as_slice());
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))?;
            let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            let place = usize::try_from(message.header.sequence_number).unwrap_or(usize::MAX);
            answers.push(Answer { place, payload: message.payload });
        }
        Ok(answers)
    }
}

/// The requests one behind the other; each has its place as its number.
fn datagram(requests: &[Request]) -> Vec<u8> {
    let mut all = Vec::new();
    for (place, request) in requests.iter().enumerate() {
        let mut message = NetlinkMessage::from(request.message.clone());
        message.header.flags = NLM_F_REQUEST | request.flags;
        message.header.sequence_number = u32::try_from(place).unwrap_or(u32::MAX);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len().next_multiple_of(4)];
        message.serialize(&mut bytes);
        all.extend_from_slice(&bytes);
    }
    all
}

fn address_message(index: u32, address: IpNet) -> AddressMessage {
    let length = address.prefix_len();
    match address.addr() {
        IpAddr::V4(v4) => AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(v4, length).build(),
        IpAddr::V6(v6) => {
            let mut message =
                AddressMessageBuilder::<Ipv6Addr>::new().index(index).address(v6, length).build();
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            message
        }
    }
}
