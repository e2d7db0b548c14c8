//! The plugin `sbr`: source-based routing. Packets from an address of this interface leave through it: each address has
//! a separate routing table with the interface's routes.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::commands::{Choice, Commands};
use crate::call::Call;
use crate::external::Search;
use crate::netlink::Netlink;
use crate::netlink::routes::MAIN;
use crate::result::{CniResult, Route};
use crate::{Error, Result, keys};

/// The first routing table of this plugin (the number of the reference plugin).
const FIRST: u32 = 100;

/// The plugin's keys.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Sbr {
    /// The routing table. Default: a free one for each address, to which the interface's routes are moved.
    table: Option<u32>,
    /// Set the address as the source of the routes.
    add_source_hints: bool,
}

impl Sbr {
    pub(super) fn compile(config: &Value) -> std::result::Result<Self, String> {
        let keys: Self = keys::parse(config)?;
        match keys.table {
            Some(0 | 253..=255) => Err("table: reserved by the kernel".to_owned()),
            _ => Ok(keys),
        }
    }
}

impl Commands for Sbr {
    fn read(_kind: &str, config: &Value, _search: &Search) -> std::result::Result<Choice<Self>, String> {
        Self::compile(config).map(Choice::BuiltIn)
    }

    async fn add(&self, call: &Call<'_>, _config: &Value, previous: CniResult) -> Result<CniResult> {
        let inside = call.inside().await?;
        let link = inside.existing(call.interface).await?;
        let of_link = |route: &crate::netlink::routes::InstalledRoute| {
            route.link == Some(link.index) && route.table == MAIN
        };
        let routes: Vec<_> = inside.routes().await?.into_iter().filter(of_link).collect();
        let mut used: Vec<u32> = inside.rules().await?.iter().map(|rule| rule.table).collect();
        for ip in addresses_of(call, &previous) {
            let address = ip.address.addr();
            let table = match self.table {
                Some(table) => table,
                None => (FIRST..).find(|table| !used.contains(table)).unwrap_or(FIRST),
            };
            used.push(table);
            inside.add_source_rule(address, table).await?;
            // The routes of a configured table are managed elsewhere.
            if self.table.is_some() {
                continue;
            }
            let source = self.add_source_hints.then_some(address);
            // The subnet comes before the gateway: the table must contain the route to the gateway.
            for route in routes.iter().filter(|route| belongs(route, ip.address)) {
                inside.copy_route(route, table, source).await?;
            }
            if let Some(gateway) = ip.gateway {
                let route = Route { table: Some(table), ..Route::new(default(address)?, Some(gateway)) };
                inside.add_route(link.index, &route, source).await?;
            }
        }
        for route in routes.into_iter().filter(|_| self.table.is_none()) {
            inside.remove_route(route.message).await?;
        }
        Ok(previous)
    }

    /// Removes the rules of the interface's addresses. Its routes are removed with it.
    async fn del(&self, call: &Call<'_>, _config: &Value, _previous: &CniResult) -> Result<()> {
        if call.netns.is_none() || call.namespace_ends {
            return Ok(());
        }
        let inside = call.inside().await?;
        let Some(link) = inside.link(call.interface).await? else { return Ok(()) };
        let addresses: Vec<IpAddr> = inside.addresses(link.index).await?.iter().map(IpNet::addr).collect();
        remove_rules(&inside, &addresses).await
    }

    async fn check(&self, call: &Call<'_>, _config: &Value, previous: &CniResult) -> Result<()> {
        let rules = call.inside().await?.rules().await?;
        for ip in addresses_of(call, previous) {
            let address = ip.address.addr();
            if !rules.iter().any(|rule| rule.source == Some(address)) {
                return Err(Error::Invalid(format!("sbr: no rule for packets from {address}")));
            }
        }
        Ok(())
    }

    fn is_chained(&self) -> bool {
        true
    }
}

async fn remove_rules(inside: &Netlink, addresses: &[IpAddr]) -> Result<()> {
    for rule in inside.rules().await? {
        if rule.source.is_some_and(|source| addresses.contains(&source)) {
            inside.remove_rule(rule.message).await?;
        }
    }
    Ok(())
}

/// Returns the addresses of the call's interface.
fn addresses_of<'a>(
    call: &'a Call<'_>,
    result: &'a CniResult,
) -> impl Iterator<Item = &'a crate::result::Ip> {
    let place =
        result.of_pod().find(|(_, interface)| interface.name == call.interface).map(|(place, _)| place);
    result.ips.iter().filter(move |ip| ip.interface.is_none() || ip.interface == place)
}

fn belongs(route: &crate::netlink::routes::InstalledRoute, address: IpNet) -> bool {
    let family = route.to.addr().is_ipv4() == address.addr().is_ipv4();
    family && route.gateway.is_none_or(|gateway| address.contains(&gateway))
}

fn default(address: IpAddr) -> Result<IpNet> {
    let any: IpAddr = match address {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    IpNet::new(any, 0).map_err(|error| Error::Invalid(error.to_string()))
}
