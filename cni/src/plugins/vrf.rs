//! The plugin `vrf`: attaches the pod's interface to a VRF (a separate routing domain) in the pod's namespace.

use netlink_packet_route::link::InfoKind;
use serde::Deserialize;
use serde_json::Value;

use super::commands::{Choice, Commands};
use crate::call::Call;
use crate::external::Search;
use crate::names::is_link_name;
use crate::netlink::{Link, Netlink};
use crate::result::CniResult;
use crate::{Error, Result, keys};

/// The plugin's keys.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Vrf {
    #[serde(rename = "vrfname")]
    name: String,
    table: Option<u32>,
}

impl Vrf {
    pub(super) fn compile(config: &Value) -> std::result::Result<Self, String> {
        let keys: Self = keys::parse(config)?;
        match (is_link_name(&keys.name), keys.table) {
            (false, _) => Err(format!("vrfname: invalid link name {:?}", keys.name)),
            (true, Some(0 | 253..=255)) => Err("table: reserved by the kernel".to_owned()),
            (true, _) => Ok(keys),
        }
    }

    /// Returns the VRF and creates it if necessary.
    async fn vrf(&self, inside: &Netlink) -> Result<Link> {
        if let Some(link) = inside.link(&self.name).await? {
            if link.kind != Some(InfoKind::Vrf) {
                return Err(Error::Invalid(format!(
                    "invalid VRF {}: the link exists and is not a VRF",
                    self.name
                )));
            }
            if self.table.is_some() && link.table != self.table {
                let why = format!("{} has the table {:?}", self.name, link.table.unwrap_or_default());
                return Err(Error::Invalid(format!("invalid table: {why}")));
            }
            return Ok(link);
        }
        let used: Vec<u32> = inside.links().await?.iter().filter_map(|link| link.table).collect();
        let table = self.table.or_else(|| (1..).find(|table| !used.contains(table) && *table != 253));
        inside.add_vrf(&self.name, table.unwrap_or(1)).await?;
        inside.existing(&self.name).await
    }
}

impl Commands for Vrf {
    fn read(_kind: &str, config: &Value, _search: &Search) -> std::result::Result<Choice<Self>, String> {
        Self::compile(config).map(Choice::BuiltIn)
    }

    async fn add(&self, call: &Call<'_>, _config: &Value, previous: CniResult) -> Result<CniResult> {
        let inside = call.inside().await?;
        let link = inside.existing(call.interface).await?;
        let vrf = self.vrf(&inside).await?;
        // The kernel removes the link's IPv6 addresses and its routes when it joins a VRF.
        let addresses = inside.addresses(link.index).await?;
        let routes: Vec<_> =
            inside.routes().await?.into_iter().filter(|route| route.link == Some(link.index)).collect();
        inside.change(link.index, "join the VRF", |link| link.controller(vrf.index)).await?;
        for address in addresses {
            inside.add_address(link.index, address).await?;
        }
        let table = vrf.table.or(self.table);
        // Routes without a gateway come first: a gateway is reached through one of them.
        let (direct, by_gateway): (Vec<_>, Vec<_>) =
            routes.into_iter().partition(|route| route.gateway.is_none());
        for route in direct.iter().chain(&by_gateway) {
            if let Some(table) = table {
                inside.copy_route(route, table, None).await?;
            }
        }
        Ok(previous)
    }

    async fn del(&self, call: &Call<'_>, _config: &Value, _previous: &CniResult) -> Result<()> {
        if call.netns.is_none() || call.namespace_ends {
            return Ok(());
        }
        let inside = call.inside().await?;
        let Some(vrf) = inside.link(&self.name).await? else { return Ok(()) };
        if let Some(link) = inside.link(call.interface).await?
            && link.controller == Some(vrf.index)
        {
            inside.change(link.index, "leave the VRF", |link| link.nocontroller()).await?;
        }
        let others = inside.links().await?.iter().any(|link| link.controller == Some(vrf.index));
        if others { Ok(()) } else { inside.remove(&self.name).await }
    }

    async fn check(&self, call: &Call<'_>, _config: &Value, _previous: &CniResult) -> Result<()> {
        let inside = call.inside().await?;
        let (vrf, link) = (inside.existing(&self.name).await?, inside.existing(call.interface).await?);
        match link.controller == Some(vrf.index) {
            true => Ok(()),
            false => Err(Error::Invalid(format!("vrf: {} is not in {}", call.interface, self.name))),
        }
    }

    fn is_chained(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_are_checked() {
        assert!(Vrf::compile(&json!({})).unwrap_err().contains("vrfname"));
        assert!(Vrf::compile(&json!({ "vrfname": "red", "table": 254 })).unwrap_err().contains("table"));
        assert!(Vrf::compile(&json!({ "vrfname": "red", "table": 10 })).is_ok());
    }
}
