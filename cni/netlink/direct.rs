//! What a thread does on one visit: several requests one after the other, or in one datagram, with nobody to wait for. A
//! thread that has entered a pod's namespace for nothing else, or one of those that block ([`super::Netlink::visit`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{InfoBridgePort, InfoPortData, InfoPortKind, LinkMessage};
use netlink_packet_route::route::RouteProtocol;
use rtnetlink::{AddressMessageBuilder, LinkUnspec};
use rustix::io::Errno;

use super::socket::{Ask, Socket};
use super::{Link, Refused as _, by_name, found, is, no_link, routes};
use crate::Result;
use crate::result::CniResult;

impl Socket {
    /// A link that must be there.
    pub(crate) fn existing(&mut self, name: &str) -> Result<Link> {
        let link = found(self.ask(Ask::Get, by_name(name))).doing_netlink(format!("look for link {name}"))?;
        link.ok_or_else(|| no_link(name))
    }

    /// A link by its number.
    pub(crate) fn link_at(&mut self, index: u32) -> Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let answer = self.ask(Ask::Get, RouteNetlinkMessage::GetLink(message));
        found(answer).doing_netlink(format!("look for link {index}"))
    }

    /// Brings a link up.
    pub(crate) fn set_up(&mut self, index: u32) -> Result<()> {
        self.set(LinkUnspec::new_with_index(index).up().build(), || format!("set the state of link {index}"))
    }

    /// Brings a link up, with words that say whose it is.
    pub(crate) fn set_up_as(&mut self, index: u32, alias: &str) -> Result<()> {
        let message = LinkUnspec::new_with_index(index).up().alias(alias.to_owned()).build();
        self.set(message, || format!("set the state of link {index}"))
    }

    /// Takes a port off its bridge and brings it down: nothing reaches the pod any more. One that is not there is fine. Costs a
    /// fraction of a removal, which waits for every processor (RCU, 20 ms).
    pub(crate) fn cut_off(&mut self, name: &str) -> Result<()> {
        let found =
            found(self.ask(Ask::Get, by_name(name))).doing_netlink(format!("look for link {name}"))?;
        let Some(link) = found else { return Ok(()) };
        let message = LinkUnspec::new_with_index(link.index).nocontroller().down().build();
        self.set(message, || format!("cut off link {name}"))
    }

    /// Tells all on a link which hardware address has its addresses. The kernel does, for both families, when the hardware
    /// address is set, be it the same (`arp_notify`, `ndisc_notify` of ip-sysctl).
    pub(crate) fn announce(&mut self, link: &Link) -> Result<()> {
        let message = LinkUnspec::new_with_index(link.index).address(link.mac.clone()).build();
        self.set(message, || format!("announce the addresses of link {}", link.index))
    }

    fn set(&mut self, message: LinkMessage, words: impl Fn() -> String) -> Result<()> {
        self.ask(Ask::Change, RouteNetlinkMessage::SetLink(message)).map(drop).doing_netlink(words())
    }

    /// How a port of a bridge behaves: whether it sends back what came in by it (a pod reaches itself over its own
    /// service), and whether it reaches other such ports.
    pub(crate) fn set_port(&mut self, index: u32, hairpin: bool, isolated: bool) -> Result<()> {
        let mut data = Vec::new();
        if hairpin {
            data.push(InfoBridgePort::HairpinMode(true));
        }
        if isolated {
            data.push(InfoBridgePort::Isolated(true));
        }
        if data.is_empty() {
            return Ok(());
        }
        let message = LinkUnspec::new_with_index(index)
            .set_port_kind(InfoPortKind::Bridge)
            .set_port_data(InfoPortData::BridgePort(data));
        // It is RTM_NEWLINK that changes what a port is, without NLM_F_CREATE.
        let changed = self.ask(Ask::Change, RouteNetlinkMessage::NewLink(message.build()));
        changed.map(drop).doing_netlink(format!("set the bridge port {index}"))
    }

    /// Gives a link the addresses and routes of a result, and brings it up; what is there already stays.
    pub(crate) fn configure(&mut self, index: u32, result: &CniResult) -> Result<()> {
        let mut requests = Vec::new();
        let mut words = Vec::new();
        for ip in &result.ips {
            requests.push((Ask::Put, RouteNetlinkMessage::NewAddress(address_message(index, ip.address))));
            words.push(format!("add address {} to link {index}", ip.address));
        }
        let up = LinkUnspec::new_with_index(index).up().build();
        requests.push((Ask::Change, RouteNetlinkMessage::SetLink(up)));
        words.push(format!("set the state of link {index}"));
        for route in result.routes_with_gateways() {
            let mut message = routes::message_of(index, &route, None);
            message.header.protocol = RouteProtocol::Boot;
            requests.push((Ask::Create, RouteNetlinkMessage::NewRoute(message)));
            words.push(format!("add route to {}", route.dst));
        }
        let answers = self.ask_all(requests).doing_netlink(format!("configure link {index}"))?;
        for (answer, words) in answers.into_iter().zip(words) {
            match answer {
                Err(error) if is(&error, Errno::EXIST) => {}
                answer => answer.map(drop).doing_netlink(words)?,
            }
        }
        Ok(())
    }
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
