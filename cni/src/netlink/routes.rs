//! Reads, adds and removes routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::RouteMessageBuilder;
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
