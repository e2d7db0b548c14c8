//! Neighbour entries, which map IP addresses to hardware addresses (arp(7)), and bridge forwarding entries, which map
//! hardware addresses to ports (bridge(8), fdb). They become wrong when another pod gets an address.

use std::net::IpAddr;

use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;

use super::socket::{Operation, Socket};
use super::{Netlink, NetlinkContext as _, is_errno};
use crate::Result;

impl Netlink {
    /// Removes the forwarding entry of a hardware address from a bridge, unless it refers to `port`.
    pub(crate) async fn forget_station(&self, bridge: u32, mac: &[u8], port: Option<u32>) -> Result<()> {
        let mut filter = of_bridge(mac);
        filter.attributes.push(NeighbourAttribute::Controller(bridge));
        let entry = match self.request(Operation::Get, RouteNetlinkMessage::GetNeighbour(filter)).await {
            Err(error) if is_errno(&error, Errno::NOENT) => None,
            entry => entry.doing_netlink(format!("find a forwarding entry of bridge {bridge}"))?,
        };
        let Some(RouteNetlinkMessage::NewNeighbour(learned)) = entry else { return Ok(()) };
        if port == Some(learned.header.ifindex) {
            return Ok(());
        }
        let mut entry = of_bridge(mac);
        entry.header.ifindex = learned.header.ifindex;
        // Removes the entry that the bridge has learned, not that of the port itself.
        entry.header.flags = NeighbourFlags::Controller;
        match self.request(Operation::Delete, RouteNetlinkMessage::DelNeighbour(entry)).await {
            Err(error) if [Errno::NOENT, Errno::NODEV].iter().any(|errno| is_errno(&error, *errno)) => Ok(()),
            removed => {
                removed.map(drop).doing_netlink(format!("remove a forwarding entry of bridge {bridge}"))
            }
        }
    }
}

impl Socket {
    /// Removes the neighbour entries of these addresses on a link, if there are any.
    pub(crate) fn forget_neighbours(&mut self, link: u32, addresses: &[IpAddr]) -> Result<()> {
        let requests =
            addresses.iter().map(|address| (Operation::Delete, of_address(link, *address))).collect();
        let failed = || format!("remove neighbour entries of link {link}");
        for answer in self.request_all(requests).doing_netlink(failed())? {
            match answer {
                // The link or the kernel may lack the address family.
                Err(error)
                    if [Errno::NOENT, Errno::NODEV, Errno::AFNOSUPPORT]
                        .iter()
                        .any(|e| is_errno(&error, *e)) => {}
                answer => drop(answer.doing_netlink(failed())?),
            }
        }
        Ok(())
    }

    /// Like [`Self::forget_neighbours`], for a link by its name, if it exists.
    pub(crate) fn forget_neighbours_on(&mut self, name: &str, addresses: &[IpAddr]) -> Result<()> {
        let link = super::optional_link(self.request(Operation::Get, super::by_name(name)));
        match link.doing_netlink(format!("find link {name}"))? {
            Some(link) => self.forget_neighbours(link.index, addresses),
            None => Ok(()),
        }
    }
}

fn of_address(link: u32, address: IpAddr) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = link;
    let (family, destination) = match address {
        IpAddr::V4(v4) => (AddressFamily::Inet, NeighbourAddress::Inet(v4)),
        IpAddr::V6(v6) => (AddressFamily::Inet6, NeighbourAddress::Inet6(v6)),
    };
    message.header.family = family;
    message.attributes.push(NeighbourAttribute::Destination(destination));
    RouteNetlinkMessage::DelNeighbour(message)
}

fn of_bridge(mac: &[u8]) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
    message
}
