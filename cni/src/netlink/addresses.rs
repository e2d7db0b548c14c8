//! Addresses of links.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::AddressMessageBuilder;
use rustix::io::Errno;

use super::socket::Operation;
use super::{Netlink, NetlinkContext as _, unless_errno};
use crate::Result;

impl Netlink {
    /// Adds an address that is usable immediately to a link. An existing one stays.
    pub(crate) async fn add_address(&self, index: u32, address: IpNet) -> Result<()> {
        self.add_address_as(index, address, AddressFlags::Nodad).await
    }

    /// Adds an address to a link; the kernel detects duplicates of it if the link's sysctls say so. See
    /// [`Self::wait_for_addresses`].
    pub(crate) async fn add_tentative_address(&self, index: u32, address: IpNet) -> Result<()> {
        self.add_address_as(index, address, AddressFlags::empty()).await
    }

    async fn add_address_as(&self, index: u32, address: IpNet, flags: AddressFlags) -> Result<()> {
        let length = address.prefix_len();
        let message = match address.addr() {
            IpAddr::V4(v4) => {
                AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(v4, length).build()
            }
            IpAddr::V6(v6) => {
                let mut message =
                    AddressMessageBuilder::<Ipv6Addr>::new().index(index).address(v6, length).build();
                message.attributes.push(AddressAttribute::Flags(flags));
                message
            }
        };
        let added = self.request(Operation::Put, RouteNetlinkMessage::NewAddress(message)).await;
        added.map(drop).doing_netlink(format!("add address {address} to link {index}"))
    }

    /// Returns the addresses of a link, except for link-local ones, which the kernel adds to every link.
    pub(crate) async fn addresses(&self, index: u32) -> Result<Vec<IpNet>> {
        let messages = self.address_messages(index).await?;
        Ok(messages.iter().filter_map(address_of).filter(|address| !is_link_local(address.addr())).collect())
    }

    /// Adds the IPv6 link-local address that the kernel gives to every link, if it was removed. Without it the host
    /// cannot resolve neighbours on this link for forwarded packets (RFC 4861, section 7.2.2).
    pub(crate) async fn keep_link_local(&self, index: u32, mac: &[u8]) -> Result<()> {
        let messages = self.address_messages(index).await?;
        let present = messages.iter().filter_map(address_of).any(|address| is_link_local(address.addr()));
        match link_local_of(mac).filter(|_| !present) {
            Some(address) => self.add_address(index, address).await,
            None => Ok(()),
        }
    }

    pub(super) async fn address_messages(&self, index: u32) -> Result<Vec<AddressMessage>> {
        let mut filter = AddressMessage::default();
        filter.header.index = index;
        let all = self.list(RouteNetlinkMessage::GetAddress(filter)).await;
        let all = all.doing_netlink(format!("list the addresses of link {index}"))?;
        let of_link = |message| match message {
            RouteNetlinkMessage::NewAddress(message) if message.header.index == index => Some(message),
            _ => None,
        };
        Ok(all.into_iter().filter_map(of_link).collect())
    }

    /// Removes an address from a link, if the link has it.
    pub(crate) async fn remove_address(&self, index: u32, address: IpNet) -> Result<()> {
        for message in self.address_messages(index).await? {
            if address_of(&message) != Some(address) {
                continue;
            }
            let removed = self.request(Operation::Delete, RouteNetlinkMessage::DelAddress(message)).await;
            unless_errno(removed, Errno::ADDRNOTAVAIL)
                .map(drop)
                .doing_netlink(format!("remove address {address} from link {index}"))?;
        }
        Ok(())
    }
}

pub(super) fn address_of(message: &AddressMessage) -> Option<IpNet> {
    let find = |select: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(select);
    // On a point-to-point link, `IFA_ADDRESS` is the address of the other end and `IFA_LOCAL` that of the link
    // (rtnetlink(7)).
    let local = find(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = find(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    IpNet::new(local.or(address)?, message.header.prefix_len).ok()
}

/// Derives the link-local address from a hardware address (RFC 4291, appendix A).
fn link_local_of(mac: &[u8]) -> Option<IpNet> {
    let [a, b, c, d, e, f]: [u8; 6] = mac.try_into().ok()?;
    let address = Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    IpNet::new(address.into(), 64).ok()
}

/// Whether an address is an IPv6 link-local one, which the kernel adds to every link.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
