//! Addresses, routes and routing rules.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{AddressMessageBuilder, RouteMessageBuilder};
use rustix::io::Errno;

use super::socket::Operation;
use super::{Netlink, NetlinkContext as _, is_errno, unless_errno};
use crate::Result;
use crate::result::Route;

/// The main routing table, which is the default (rtnetlink(7), `RT_TABLE_MAIN`).
pub(crate) const MAIN: u32 = 254;

/// Documentation addresses (RFC 5737, RFC 3849): no host has them, so only a default route matches.
const DOCUMENTATION: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];

/// An installed route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InstalledRoute {
    pub(crate) to: IpNet,
    pub(crate) gateway: Option<IpAddr>,
    pub(crate) link: Option<u32>,
    pub(crate) table: u32,
    pub(crate) message: RouteMessage,
}

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

    /// Adds a route through a link. An existing one stays.
    pub(crate) async fn add_route(&self, index: u32, route: &Route, source: Option<IpAddr>) -> Result<()> {
        let mut message = message_of(index, route, source);
        // The protocol of the reference plugins: routing daemons distinguish it from the routes of an administrator.
        message.header.protocol = RouteProtocol::Boot;
        let added = self.request(Operation::Create, RouteNetlinkMessage::NewRoute(message)).await;
        unless_errno(added, Errno::EXIST).map(drop).doing_netlink(format!("add route to {}", route.dst))
    }

    /// Adds a route that was read elsewhere.
    pub(crate) async fn add_route_message(&self, message: RouteMessage) -> Result<()> {
        let added = self.request(Operation::Create, RouteNetlinkMessage::NewRoute(message)).await;
        unless_errno(added, Errno::EXIST).map(drop).doing_netlink("add a route")
    }

    /// Removes a route, if it exists.
    pub(crate) async fn remove_route(&self, message: RouteMessage) -> Result<()> {
        let removed = self.request(Operation::Delete, RouteNetlinkMessage::DelRoute(message)).await;
        unless_errno(removed, Errno::SRCH).map(drop).doing_netlink("remove a route")
    }

    /// Lists the routes of all tables, except for the kernel's table of local addresses.
    pub(crate) async fn routes(&self) -> Result<Vec<InstalledRoute>> {
        let mut all = Vec::new();
        for family in
            [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
        {
            let mut family = family;
            // Dumps all tables (`RT_TABLE_UNSPEC`).
            family.header.table = 0;
            family.header.scope = RouteScope::Universe;
            let routes =
                self.list(RouteNetlinkMessage::GetRoute(family)).await.doing_netlink("list routes")?;
            all.extend(routes.into_iter().filter_map(route_of).filter_map(installed_route));
        }
        Ok(all)
    }

    /// Copies a route to another table.
    pub(crate) async fn copy_route(
        &self,
        route: &InstalledRoute,
        table: u32,
        source: Option<IpAddr>,
    ) -> Result<()> {
        let mut message = route.message.clone();
        message.attributes.retain(|attribute| !matches!(attribute, RouteAttribute::Table(_)));
        message.attributes.push(RouteAttribute::Table(table));
        message.header.table = u8::try_from(table).unwrap_or(0);
        message.header.flags = RouteFlags::empty();
        if let Some(source) = source {
            let kept = |attribute: &RouteAttribute| !matches!(attribute, RouteAttribute::PrefSource(_));
            message.attributes.retain(kept);
            message.attributes.push(RouteAttribute::PrefSource(source.into()));
        }
        self.add_route_message(message).await
    }

    /// Returns the link through which an address is reached.
    pub(crate) async fn link_to(&self, address: IpAddr) -> Result<Option<u32>> {
        Ok(self.route_to(address).await?.and_then(|route| route.link))
    }

    /// Returns the route of packets to an address; `None` if there is none. This is one lookup, however many routes
    /// exist.
    async fn route_to(&self, address: IpAddr) -> Result<Option<InstalledRoute>> {
        let mut message = match address {
            IpAddr::V4(to) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to, 32).build(),
            IpAddr::V6(to) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(to, 128).build(),
        };
        message.header = RouteHeader {
            address_family: message.header.address_family,
            destination_prefix_length: message.header.destination_prefix_length,
            // Return the matched route itself, not one that is resolved for this address.
            flags: RouteFlags::FibMatch,
            ..RouteHeader::default()
        };
        let answer = self.request(Operation::Get, RouteNetlinkMessage::GetRoute(message)).await;
        let unreachable = [Errno::NETUNREACH, Errno::HOSTUNREACH, Errno::ACCESS, Errno::INVAL, Errno::NOENT];
        match answer {
            Err(error) if unreachable.iter().any(|errno| is_errno(&error, *errno)) => Ok(None),
            answer => Ok(answer
                .doing_netlink(format!("find the route to {address}"))?
                .and_then(route_of)
                .and_then(installed_route)),
        }
    }

    /// Returns the link of the default route: of the route to an address that no host has.
    pub(crate) async fn default_link(&self) -> Result<Option<u32>> {
        for address in DOCUMENTATION {
            let route = self.route_to(address).await?;
            if let Some(link) = route.filter(|route| route.to.prefix_len() == 0).and_then(|route| route.link)
            {
                return Ok(Some(link));
            }
        }
        Ok(None)
    }

    /// Adds a rule: packets from an address use a table.
    pub(crate) async fn add_source_rule(&self, from: IpAddr, table: u32) -> Result<()> {
        let mut message = RuleMessage::default();
        (message.header.family, message.header.src_len) = match from {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        message.header.action = RuleAction::ToTable;
        message.attributes.push(RuleAttribute::Source(from));
        match u8::try_from(table) {
            Ok(table) => message.header.table = table,
            Err(_) => message.attributes.push(RuleAttribute::Table(table)),
        }
        let added = self.request(Operation::Create, RouteNetlinkMessage::NewRule(message)).await;
        unless_errno(added, Errno::EXIST)
            .map(drop)
            .doing_netlink(format!("add a rule for packets from {from}"))
    }

    /// Lists the rules of both families.
    pub(crate) async fn rules(&self) -> Result<Vec<Rule>> {
        let mut all = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RuleMessage::default();
            message.header.family = family;
            let rules = self.list(RouteNetlinkMessage::GetRule(message)).await.doing_netlink("list rules")?;
            all.extend(rules.into_iter().filter_map(|message| match message {
                RouteNetlinkMessage::NewRule(rule) => Some(rule_of(rule)),
                _ => None,
            }));
        }
        Ok(all)
    }

    /// Removes a rule, if it exists.
    pub(crate) async fn remove_rule(&self, rule: RuleMessage) -> Result<()> {
        let removed = self.request(Operation::Delete, RouteNetlinkMessage::DelRule(rule)).await;
        unless_errno(removed, Errno::NOENT).map(drop).doing_netlink("remove a rule")
    }
}

/// An installed routing rule.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    /// The address that the rule matches, if it matches exactly one.
    pub(crate) source: Option<IpAddr>,
    pub(crate) table: u32,
    pub(crate) message: RuleMessage,
}

fn rule_of(message: RuleMessage) -> Rule {
    let full_length = if message.header.family == AddressFamily::Inet { 32 } else { 128 };
    let source = message.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Source(source) if message.header.src_len == full_length => Some(*source),
        _ => None,
    });
    let table = message.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    });
    Rule { source, table: table.unwrap_or_else(|| u32::from(message.header.table)), message }
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

pub(super) fn message_of(index: u32, route: &Route, source: Option<IpAddr>) -> RouteMessage {
    let scope = match (route.scope, route.gw) {
        (Some(scope), _) => RouteScope::from(scope),
        (None, None) if route.dst.addr().is_ipv4() => RouteScope::Link,
        (None, _) => RouteScope::Universe,
    };
    let mut message = match route.dst {
        IpNet::V4(to) => {
            let mut message = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(to.network(), to.prefix_len())
                .output_interface(index)
                .scope(scope);
            if let Some(IpAddr::V4(gateway)) = route.gw {
                message = message.gateway(gateway);
            }
            if let Some(IpAddr::V4(source)) = source {
                message = message.pref_source(source);
            }
            with_priority_and_table(message, route).build()
        }
        IpNet::V6(to) => {
            let mut message = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(to.network(), to.prefix_len())
                .output_interface(index)
                .scope(scope);
            if let Some(IpAddr::V6(gateway)) = route.gw {
                message = message.gateway(gateway);
            }
            if let Some(IpAddr::V6(source)) = source {
                message = message.pref_source(source);
            }
            with_priority_and_table(message, route).build()
        }
    };
    let metrics: Vec<RouteMetric> = [
        (route.mtu != 0).then_some(RouteMetric::Mtu(route.mtu)),
        (route.advmss != 0).then_some(RouteMetric::Advmss(route.advmss)),
    ]
    .into_iter()
    .flatten()
    .collect();
    if !metrics.is_empty() {
        message.attributes.push(RouteAttribute::Metrics(metrics));
    }
    message
}

fn with_priority_and_table<T>(mut message: RouteMessageBuilder<T>, route: &Route) -> RouteMessageBuilder<T> {
    if route.priority != 0 {
        message = message.priority(route.priority);
    }
    match route.table {
        Some(table) => message.table_id(table),
        None => message,
    }
}

fn route_of(message: RouteNetlinkMessage) -> Option<RouteMessage> {
    match message {
        RouteNetlinkMessage::NewRoute(route) => Some(route),
        _ => None,
    }
}

fn installed_route(message: RouteMessage) -> Option<InstalledRoute> {
    const LOCAL: u32 = 255;
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    let mut route = InstalledRoute {
        to: default_of(&message)?,
        gateway: None,
        link: None,
        table: u32::from(message.header.table),
        message: RouteMessage::default(),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                route.to = IpNet::new(ip_of(address)?, message.header.destination_prefix_length).ok()?;
            }
            RouteAttribute::Gateway(address) => route.gateway = ip_of(address),
            RouteAttribute::Oif(index) => route.link = Some(*index),
            RouteAttribute::Table(table) => route.table = *table,
            _ => {}
        }
    }
    route.message = message;
    (route.table != LOCAL).then_some(route)
}

fn default_of(message: &RouteMessage) -> Option<IpNet> {
    match message.header.address_family {
        AddressFamily::Inet => IpNet::new(Ipv4Addr::UNSPECIFIED.into(), 0).ok(),
        AddressFamily::Inet6 => IpNet::new(Ipv6Addr::UNSPECIFIED.into(), 0).ok(),
        _ => None,
    }
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
