//! What a thread does that has entered a pod's namespace for nothing else: several requests of one datagram, with nobody
//! to wait for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
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
