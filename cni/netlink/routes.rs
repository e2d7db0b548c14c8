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

use super::socket::Ask;
use super::{Netlink, Refused as _, is, unless};
use crate::Result;
use crate::result::Route;

/// The table of routes that no other is said for (rtnetlink(7), `RT_TABLE_MAIN`).
pub(crate) const MAIN: u32 = 254;

/// Addresses of documents (RFC 5737, RFC 3849): no host has them, so that only a default route leads there.
const NOBODY: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];

/// A route as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) to: IpNet,
    pub(crate) gateway: Option<IpAddr>,
    pub(crate) link: Option<u32>,
    pub(crate) table: u32,
    pub(crate) message: RouteMessage,
}

impl Netlink {
    /// Gives a link an address that is usable at once; one that it has already is kept.
    pub(crate) async fn add_address(&self, index: u32, address: IpNet) -> Result<()> {
        self.add_address_as(index, address, AddressFlags::Nodad).await
    }

    /// Gives a link an address for which the kernel looks whether another has it, where the link's sysctls say so; see
    /// [`Self::settle`].
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
        let added = self.ask(Ask::Put, RouteNetlinkMessage::NewAddress(message)).await;
        added.map(drop).doing_netlink(format!("add address {address} to link {index}"))
    }

    /// The addresses of a link, without those that the kernel gives to every link.
    pub(crate) async fn addresses(&self, index: u32) -> Result<Vec<IpNet>> {
        let messages = self.address_messages(index).await?;
        Ok(messages.iter().filter_map(address_of).filter(|address| !is_link_local(address.addr())).collect())
    }

    /// Gives a link the address that the kernel gives to every link of IPv6, where somebody has taken it. Without it the host
    /// asks for no neighbour by this link for packets that it passes on (RFC 4861, section 7.2.2).
    pub(crate) async fn keep_link_local(&self, index: u32, mac: &[u8]) -> Result<()> {
        let messages = self.address_messages(index).await?;
        let has = messages.iter().filter_map(address_of).any(|address| is_link_local(address.addr()));
        match link_local_of(mac).filter(|_| !has) {
            Some(address) => self.add_address(index, address).await,
            None => Ok(()),
        }
    }

    pub(super) async fn address_messages(&self, index: u32) -> Result<Vec<AddressMessage>> {
        let mut asked = AddressMessage::default();
        asked.header.index = index;
        let all = self.list(RouteNetlinkMessage::GetAddress(asked)).await;
        let all = all.doing_netlink(format!("list the addresses of link {index}"))?;
        let of_link = |message| match message {
            RouteNetlinkMessage::NewAddress(message) if message.header.index == index => Some(message),
            _ => None,
        };
        Ok(all.into_iter().filter_map(of_link).collect())
    }

    /// Takes an address from a link; one that it does not have is taken already.
    pub(crate) async fn remove_address(&self, index: u32, address: IpNet) -> Result<()> {
        for message in self.address_messages(index).await? {
            if address_of(&message) != Some(address) {
                continue;
            }
            let removed = self.ask(Ask::Delete, RouteNetlinkMessage::DelAddress(message)).await;
            unless(removed, Errno::ADDRNOTAVAIL)
                .map(drop)
                .doing_netlink(format!("remove address {address} from link {index}"))?;
        }
        Ok(())
    }

    /// Adds a route by a link; one that is there already is kept.
    pub(crate) async fn add_route(&self, index: u32, route: &Route, source: Option<IpAddr>) -> Result<()> {
        let mut message = message_of(index, route, source);
        // As the reference plugins': daemons of routing tell it from what an administrator has added.
        message.header.protocol = RouteProtocol::Boot;
        let added = self.ask(Ask::Create, RouteNetlinkMessage::NewRoute(message)).await;
        unless(added, Errno::EXIST).map(drop).doing_netlink(format!("add route to {}", route.dst))
    }

    /// Adds a route as it was found elsewhere.
    pub(crate) async fn add_route_message(&self, message: RouteMessage) -> Result<()> {
        let added = self.ask(Ask::Create, RouteNetlinkMessage::NewRoute(message)).await;
        unless(added, Errno::EXIST).map(drop).doing_netlink("add a route")
    }

    /// Removes a route; one that is gone is removed already.
    pub(crate) async fn remove_route(&self, message: RouteMessage) -> Result<()> {
        let removed = self.ask(Ask::Delete, RouteNetlinkMessage::DelRoute(message)).await;
        unless(removed, Errno::SRCH).map(drop).doing_netlink("remove a route")
    }

    /// The routes of every table, without those of the kernel's own table for local addresses.
    pub(crate) async fn routes(&self) -> Result<Vec<Known>> {
        let mut all = Vec::new();
        for family in
            [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
        {
            let mut family = family;
            // A dump of all, whatever the table (`RT_TABLE_UNSPEC`).
            family.header.table = 0;
            family.header.scope = RouteScope::Universe;
            let routes =
                self.list(RouteNetlinkMessage::GetRoute(family)).await.doing_netlink("list routes")?;
            all.extend(routes.into_iter().filter_map(route_of).filter_map(known));
        }
        Ok(all)
    }

    /// Adds a route to another table.
    pub(crate) async fn copy_route(&self, route: &Known, table: u32, source: Option<IpAddr>) -> Result<()> {
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

    /// The link by which an address is reached.
    pub(crate) async fn link_to(&self, address: IpAddr) -> Result<Option<u32>> {
        Ok(self.route_to(address).await?.and_then(|route| route.link))
    }

    /// The route by which packets to an address leave; `None` where they cannot. One lookup, however many routes there are.
    async fn route_to(&self, address: IpAddr) -> Result<Option<Known>> {
        let mut message = match address {
            IpAddr::V4(to) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to, 32).build(),
            IpAddr::V6(to) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(to, 128).build(),
        };
        message.header = RouteHeader {
            address_family: message.header.address_family,
            destination_prefix_length: message.header.destination_prefix_length,
            // The route itself, not what is made of it for this address.
            flags: RouteFlags::FibMatch,
            ..RouteHeader::default()
        };
        let answer = self.ask(Ask::Get, RouteNetlinkMessage::GetRoute(message)).await;
        let no_way = [Errno::NETUNREACH, Errno::HOSTUNREACH, Errno::ACCESS, Errno::INVAL, Errno::NOENT];
        match answer {
            Err(error) if no_way.iter().any(|errno| is(&error, *errno)) => Ok(None),
            answer => Ok(answer
                .doing_netlink(format!("look for the route to {address}"))?
                .and_then(route_of)
                .and_then(known)),
        }
    }

    /// The link of the default route: of that which leads to an address that nobody has.
    pub(crate) async fn default_link(&self) -> Result<Option<u32>> {
        for nobody in NOBODY {
            let route = self.route_to(nobody).await?;
            if let Some(link) = route.filter(|route| route.to.prefix_len() == 0).and_then(|route| route.link)
            {
                return Ok(Some(link));
            }
        }
        Ok(None)
    }

    /// Sends what comes from an address to a table.
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
        let added = self.ask(Ask::Create, RouteNetlinkMessage::NewRule(message)).await;
        unless(added, Errno::EXIST).map(drop).doing_netlink(format!("add a rule for what comes from {from}"))
    }

    /// The rules of both families.
    pub(crate) async fn rules(&self) -> Result<Vec<Rule>> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RuleMessage::default();
            message.header.family = family;
            let rules = self.list(RouteNetlinkMessage::GetRule(message)).await.doing_netlink("list rules")?;
            found.extend(rules.into_iter().filter_map(|message| match message {
                RouteNetlinkMessage::NewRule(rule) => Some(rule_of(rule)),
                _ => None,
            }));
        }
        Ok(found)
    }

    /// Removes a rule; one that is gone is removed already.
    pub(crate) async fn remove_rule(&self, rule: RuleMessage) -> Result<()> {
        let removed = self.ask(Ask::Delete, RouteNetlinkMessage::DelRule(rule)).await;
        unless(removed, Errno::NOENT).map(drop).doing_netlink("remove a rule")
    }
}

/// A rule as it is.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    /// The one address that it is about.
    pub(crate) source: Option<IpAddr>,
    pub(crate) table: u32,
    pub(crate) message: RuleMessage,
}

fn rule_of(message: RuleMessage) -> Rule {
    let alone = if message.header.family == AddressFamily::Inet { 32 } else { 128 };
    let source = message.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Source(source) if message.header.src_len == alone => Some(*source),
        _ => None,
    });
    let table = message.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    });
    Rule { source, table: table.unwrap_or_else(|| u32::from(message.header.table)), message }
}

pub(super) fn address_of(message: &AddressMessage) -> Option<IpNet> {
    let of = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(wanted);
    // The local one where the link has another at its far end (rtnetlink(7), `IFA_LOCAL`).
    let local = of(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = of(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    IpNet::new(local.or(address)?, message.header.prefix_len).ok()
}

/// The address of a link by its hardware address (RFC 4291, appendix A).
fn link_local_of(mac: &[u8]) -> Option<IpNet> {
    let [a, b, c, d, e, f]: [u8; 6] = mac.try_into().ok()?;
    let address = Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    IpNet::new(address.into(), 64).ok()
}

/// Whether the kernel gives it to every link.
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
            finer(message, route).build()
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
            finer(message, route).build()
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

fn finer<T>(mut message: RouteMessageBuilder<T>, route: &Route) -> RouteMessageBuilder<T> {
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

fn known(message: RouteMessage) -> Option<Known> {
    const LOCAL: u32 = 255;
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    let mut route = Known {
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
