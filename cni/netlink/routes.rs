//! Addresses, routes and routing rules.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{IpVersion, RouteMessageBuilder};

use super::{EADDRNOTAVAIL, EEXIST, ENOENT, ESRCH, Netlink, code};
use crate::result::Route;
use crate::{Context, Result};

/// The table of routes that no other is said for (rtnetlink(7), `RT_TABLE_MAIN`).
pub(crate) const MAIN: u32 = 254;

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
        let mut request = self.handle.address().add(index, address.addr(), address.prefix_len()).replace();
        if address.addr().is_ipv6() {
            request.message_mut().attributes.push(AddressAttribute::Flags(flags));
        }
        request.execute().await.doing(format!("add address {address} to link {index}"))
    }

    /// The addresses of a link, without those that the kernel gives to every link.
    pub(crate) async fn addresses(&self, index: u32) -> Result<Vec<IpNet>> {
        let messages = self.address_messages(index).await?;
        Ok(messages.iter().filter_map(address_of).filter(|address| !is_link_local(address.addr())).collect())
    }

    pub(super) async fn address_messages(&self, index: u32) -> Result<Vec<AddressMessage>> {
        let stream = self.handle.address().get().set_link_index_filter(index).execute();
        stream.try_collect().await.doing(format!("list the addresses of link {index}"))
    }

    /// Takes an address from a link; one that it does not have is taken already.
    pub(crate) async fn remove_address(&self, index: u32, address: IpNet) -> Result<()> {
        for message in self.address_messages(index).await? {
            if address_of(&message) != Some(address) {
                continue;
            }
            match self.handle.address().del(message).execute().await {
                Err(error) if code(&error) == EADDRNOTAVAIL => {}
                removed => removed.doing(format!("remove address {address} from link {index}"))?,
            }
        }
        Ok(())
    }

    /// Adds a route by a link; one that is there already is kept.
    pub(crate) async fn add_route(&self, index: u32, route: &Route, source: Option<IpAddr>) -> Result<()> {
        let mut message = message_of(index, route, source);
        // As the reference plugins': daemons of routing tell it from what an administrator has added.
        message.header.protocol = RouteProtocol::Boot;
        match self.handle.route().add(message).execute().await {
            Err(error) if code(&error) == EEXIST => Ok(()),
            added => added.doing(format!("add route to {}", route.dst)),
        }
    }

    /// Adds a route as it was found elsewhere.
    pub(crate) async fn add_route_message(&self, message: RouteMessage) -> Result<()> {
        match self.handle.route().add(message).execute().await {
            Err(error) if code(&error) == EEXIST => Ok(()),
            added => added.doing("add a route"),
        }
    }

    /// Removes a route; one that is gone is removed already.
    pub(crate) async fn remove_route(&self, message: RouteMessage) -> Result<()> {
        match self.handle.route().del(message).execute().await {
            Err(error) if code(&error) == ESRCH => Ok(()),
            removed => removed.doing("remove a route"),
        }
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
            let routes: Vec<RouteMessage> =
                self.handle.route().get(family).execute().try_collect().await.doing("list routes")?;
            all.extend(routes.into_iter().filter_map(known));
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

    /// The link by which an address is reached: that of the narrowest route of the main table.
    pub(crate) async fn link_to(&self, address: IpAddr) -> Result<Option<u32>> {
        let routes = self.routes().await?;
        let fitting = routes.iter().filter(|route| route.table == MAIN && route.to.contains(&address));
        Ok(fitting.max_by_key(|route| route.to.prefix_len()).and_then(|route| route.link))
    }

    /// The link of the default route of the main table.
    pub(crate) async fn default_link(&self) -> Result<Option<u32>> {
        let routes = self.routes().await?;
        let default = routes.iter().find(|route| route.to.prefix_len() == 0 && route.table == MAIN);
        Ok(default.and_then(|route| route.link))
    }

    /// Sends what comes from an address to a table.
    pub(crate) async fn add_source_rule(&self, from: IpAddr, table: u32) -> Result<()> {
        let added = match from {
            IpAddr::V4(from) => {
                let rule = self.handle.rule().add().v4().source_prefix(from, 32);
                rule.table_id(table).action(RuleAction::ToTable).execute().await
            }
            IpAddr::V6(from) => {
                let rule = self.handle.rule().add().v6().source_prefix(from, 128);
                rule.table_id(table).action(RuleAction::ToTable).execute().await
            }
        };
        match added {
            Err(error) if code(&error) == EEXIST => Ok(()),
            added => added.doing(format!("add a rule for what comes from {from}")),
        }
    }

    /// The rules of both families.
    pub(crate) async fn rules(&self) -> Result<Vec<Rule>> {
        let mut found = Vec::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            let rules: Vec<RuleMessage> =
                self.handle.rule().get(version).execute().try_collect().await.doing("list rules")?;
            found.extend(rules.into_iter().map(rule_of));
        }
        Ok(found)
    }

    /// Removes a rule; one that is gone is removed already.
    pub(crate) async fn remove_rule(&self, rule: RuleMessage) -> Result<()> {
        match self.handle.rule().del(rule).execute().await {
            Err(error) if code(&error) == ENOENT => Ok(()),
            removed => removed.doing("remove a rule"),
        }
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
