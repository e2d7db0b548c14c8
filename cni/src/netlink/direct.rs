//! Blocking requests on one thread: several in sequence, or several in one datagram. The thread has entered a pod's
//! namespace for them, or is a blocking thread ([`super::Netlink::visit`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{InfoBridgePort, InfoPortData, InfoPortKind, LinkMessage};
use netlink_packet_route::route::RouteProtocol;
use rtnetlink::{AddressMessageBuilder, LinkUnspec};
use rustix::io::Errno;

use super::socket::{Operation, Socket};
use super::{Link, NetlinkContext as _, by_name, is_errno, link_not_found, optional_link, routes};
use crate::Result;
use crate::result::CniResult;

impl Socket {
    /// Returns a link that must exist.
    pub(crate) fn existing(&mut self, name: &str) -> Result<Link> {
        let link = optional_link(self.request(Operation::Get, by_name(name)))
            .doing_netlink(format!("find link {name}"))?;
        link.ok_or_else(|| link_not_found(name))
    }

    /// Returns a link by its index.
    pub(crate) fn link_at(&mut self, index: u32) -> Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let answer = self.request(Operation::Get, RouteNetlinkMessage::GetLink(message));
        optional_link(answer).doing_netlink(format!("find link {index}"))
    }

    /// Brings a link up.
    pub(crate) fn set_up(&mut self, index: u32) -> Result<()> {
        self.set(LinkUnspec::new_with_index(index).up().build(), || format!("set the state of link {index}"))
    }

    /// Brings a link up and sets its alias, which identifies its owner.
    pub(crate) fn set_up_as(&mut self, index: u32, alias: &str) -> Result<()> {
        let message = LinkUnspec::new_with_index(index).up().alias(alias.to_owned()).build();
        self.set(message, || format!("set the state of link {index}"))
    }

    /// Detaches a port from its bridge, if it exists, and brings it down: nothing reaches the pod any longer. This
    /// takes a fraction of the time of a removal, which waits for every processor (RCU, 20 ms).
    pub(crate) fn cut_off(&mut self, name: &str) -> Result<()> {
        let link = optional_link(self.request(Operation::Get, by_name(name)))
            .doing_netlink(format!("find link {name}"))?;
        let Some(link) = link else { return Ok(()) };
        let message = LinkUnspec::new_with_index(link.index).nocontroller().down().build();
        self.set(message, || format!("disconnect link {name}"))
    }

    /// Announces the link's addresses with its hardware address. The kernel does so for both families when the hardware
    /// address is set, even to the same value (`arp_notify`, `ndisc_notify` of ip-sysctl).
    pub(crate) fn announce(&mut self, link: &Link) -> Result<()> {
        let message = LinkUnspec::new_with_index(link.index).address(link.mac.clone()).build();
        self.set(message, || format!("announce the addresses of link {}", link.index))
    }

    fn set(&mut self, message: LinkMessage, action: impl Fn() -> String) -> Result<()> {
        self.request(Operation::Change, RouteNetlinkMessage::SetLink(message))
            .map(drop)
            .doing_netlink(action())
    }

    /// Sets the behaviour of a bridge port: whether frames may leave through the port that they arrived at (a pod that
    /// connects to itself through its service), and whether it is isolated from other isolated ports.
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
        // RTM_NEWLINK without NLM_F_CREATE changes an existing port.
        let changed = self.request(Operation::Change, RouteNetlinkMessage::NewLink(message.build()));
        changed.map(drop).doing_netlink(format!("set the bridge port {index}"))
    }

    /// Adds the addresses and routes of a result to a link and brings it up. Existing ones stay.
    pub(crate) fn configure(&mut self, index: u32, result: &CniResult) -> Result<()> {
        let mut requests = Vec::new();
        let mut actions = Vec::new();
        for ip in &result.ips {
            requests
                .push((Operation::Put, RouteNetlinkMessage::NewAddress(address_message(index, ip.address))));
            actions.push(format!("add address {} to link {index}", ip.address));
        }
        let up = LinkUnspec::new_with_index(index).up().build();
        requests.push((Operation::Change, RouteNetlinkMessage::SetLink(up)));
        actions.push(format!("set the state of link {index}"));
        for route in result.routes_with_gateways() {
            let mut message = routes::message_of(index, &route, None);
            message.header.protocol = RouteProtocol::Boot;
            requests.push((Operation::Create, RouteNetlinkMessage::NewRoute(message)));
            actions.push(format!("add route to {}", route.dst));
        }
        let answers = self.request_all(requests).doing_netlink(format!("configure link {index}"))?;
        for (answer, action) in answers.into_iter().zip(actions) {
            match answer {
                Err(error) if is_errno(&error, Errno::EXIST) => {}
                answer => answer.map(drop).doing_netlink(action)?,
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
