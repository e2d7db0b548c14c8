//! What hosts remember of each other: which hardware address has an IP address (arp(7)), and by which port of a bridge a
//! hardware address is reached (bridge(8), fdb). An address that comes back in another pod is not where it was.

use std::net::IpAddr;

use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;

use super::socket::{Ask, Socket};
use super::{Netlink, Refused as _, is};
use crate::Result;

impl Netlink {
    /// Forgets by which port of a bridge a hardware address was reached, unless it is `port`.
    pub(crate) async fn forget_station(&self, bridge: u32, mac: &[u8], port: Option<u32>) -> Result<()> {
        let mut asked = of_bridge(mac);
        asked.attributes.push(NeighbourAttribute::Controller(bridge));
        let found = match self.ask(Ask::Get, RouteNetlinkMessage::GetNeighbour(asked)).await {
            Err(error) if is(&error, Errno::NOENT) => None,
            found => found.doing_netlink(format!("look for a station of bridge {bridge}"))?,
        };
        let Some(RouteNetlinkMessage::NewNeighbour(found)) = found else { return Ok(()) };
        if port == Some(found.header.ifindex) {
            return Ok(());
        }
        let mut entry = of_bridge(mac);
        entry.header.ifindex = found.header.ifindex;
        // What the bridge has learned, not the port itself.
        entry.header.flags = NeighbourFlags::Controller;
        match self.ask(Ask::Delete, RouteNetlinkMessage::DelNeighbour(entry)).await {
            Err(error) if [Errno::NOENT, Errno::NODEV].iter().any(|errno| is(&error, *errno)) => Ok(()),
            removed => removed.map(drop).doing_netlink(format!("forget a station of bridge {bridge}")),
        }
    }
}

impl Socket {
    /// Forgets who has had these addresses on a link; what is not remembered is forgotten already.
    pub(crate) fn forget_neighbours(&mut self, link: u32, addresses: &[IpAddr]) -> Result<()> {
        let requests = addresses.iter().map(|address| (Ask::Delete, of_address(link, *address))).collect();
        let failed = || format!("forget neighbours of link {link}");
        for answer in self.ask_all(requests).doing_netlink(failed())? {
            match answer {
                // Also of a family that the link or the kernel does not have.
                Err(error)
                    if [Errno::NOENT, Errno::NODEV, Errno::AFNOSUPPORT].iter().any(|e| is(&error, *e)) => {}
                answer => drop(answer.doing_netlink(failed())?),
            }
        }
        Ok(())
    }

    /// The same for a link by its name, if it is there.
    pub(crate) fn forget_neighbours_on(&mut self, name: &str, addresses: &[IpAddr]) -> Result<()> {
        let found = super::found(self.ask(Ask::Get, super::by_name(name)));
        match found.doing_netlink(format!("look for link {name}"))? {
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
