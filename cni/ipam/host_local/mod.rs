//! The IPAM plugin `host-local`: one file per address in a folder per network. The format is that of the reference
//! plugin, so a node that used that plugin keeps its addresses.
//!
//! * this file: the keys, and the plugin
//! * [`ranges`]: arithmetic of ranges; [`store`]: the owners of addresses, on disk; [`index`]: the same in memory;
//!   [`runs`]: which numbers are free

mod index;
mod ranges;
mod runs;
mod store;

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::requested;
use crate::call::{Call, RangeEntry as Range};
use crate::host::Host;
use crate::result::{CniResult, Route};
use crate::{Error, Result};

pub(crate) use index::Indexes;
pub(crate) use ranges::nth;
use ranges::{check, overlaps};
pub(crate) use store::{Owner, Store};

/// The plugin's keys.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct HostLocal {
    data_dir: Option<PathBuf>,
    routes: Vec<Route>,
    resolv_conf: Option<PathBuf>,
    /// The sets of ranges. Each attachment gets one address of each set.
    pub(crate) ranges: Vec<Vec<Range>>,
    subnet: Option<IpNet>,
    range_start: Option<IpAddr>,
    range_end: Option<IpAddr>,
    gateway: Option<IpAddr>,
}

impl HostLocal {
    /// Parses and checks the keys. If `dynamic`, a runtime may pass ranges: none are required.
    pub(super) fn compile(ipam: &Value, dynamic: bool) -> std::result::Result<Self, String> {
        let mut keys: Self = super::keys(ipam)?;
        if let Some(subnet) = keys.subnet.take() {
            let range = Range {
                subnet,
                range_start: keys.range_start.take(),
                range_end: keys.range_end.take(),
                gateway: keys.gateway.take(),
            };
            keys.ranges.insert(0, vec![range]);
        }
        if (keys.ranges.is_empty() && !dynamic) || keys.ranges.iter().any(Vec::is_empty) {
            return Err("ranges: must not be empty".to_owned());
        }
        for (place, range) in keys.ranges.iter().flatten().enumerate() {
            check(range).map_err(|why| format!("ranges[{place}].{why}"))?;
        }
        overlaps(&keys.ranges)?;
        Ok(keys)
    }

    /// Returns all sets of ranges, those of the runtime first.
    fn all_ranges(&self, call: &Call<'_>) -> Result<Vec<Vec<Range>>> {
        let runtime = &call.runtime.ip_ranges;
        for range in runtime.iter().flatten() {
            check(range).map_err(|why| Error::Invalid(format!("invalid ipRanges: {why}")))?;
        }
        let all: Vec<_> = runtime.iter().chain(&self.ranges).cloned().collect();
        match all.is_empty() || all.iter().any(Vec::is_empty) {
            true => Err(Error::Invalid("host-local: no address ranges are configured".to_owned())),
            false => overlaps(&all).map(|()| all).map_err(Error::Invalid),
        }
    }

    /// The address store of a network, in `data_dir` unless the keys name another folder.
    pub(crate) fn store(&self, host: &Host, data_dir: &Path, network: &str) -> Store {
        Store::new(self.data_dir.as_deref().unwrap_or(data_dir).join(network), &host.addresses)
    }

    fn store_of(&self, call: &Call<'_>) -> Store {
        self.store(call.host, call.data_dir, call.network)
    }

    /// Allocates addresses. They are on disk before they are used.
    pub(super) async fn add(&self, call: &Call<'_>, config: &Value) -> Result<CniResult> {
        let (store, ranges) = (self.store_of(call), self.all_ranges(call)?);
        let (owner, requested) = (Owner::of(call), requested(call, config)?);
        let requested: Vec<IpAddr> = requested.into_iter().map(|(address, _)| address).collect();
        let ips = super::blocking(move || store.allocate(&ranges, &owner, &requested)).await?;
        let dns = match &self.resolv_conf {
            Some(file) => super::resolv_conf(file)?,
            None => crate::result::Dns::default(),
        };
        Ok(CniResult { ips, routes: self.routes.clone(), dns, ..CniResult::default() })
    }

    pub(super) async fn del(&self, call: &Call<'_>) -> Result<()> {
        let (store, owner) = (self.store_of(call), Owner::of(call));
        super::blocking(move || store.release(&owner)).await
    }

    pub(super) async fn check(&self, call: &Call<'_>) -> Result<()> {
        let (store, owner) = (self.store_of(call), Owner::of(call));
        match super::blocking(move || store.has(&owner)).await? {
            true => Ok(()),
            false => Err(Error::Invalid(format!("host-local: {} has no address", call.container))),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_keys_are_checked() {
        let compile = |keys: Value| HostLocal::compile(&keys, false);
        let old = compile(json!({ "subnet": "10.2.0.0/24", "gateway": "10.2.0.254" })).unwrap();
        assert_eq!(ranges::gateway(&old.ranges[0][0]).to_string(), "10.2.0.254");
        for (keys, why) in [
            (json!({}), "ranges: must not be empty"),
            (json!({ "ranges": [[{ "subnet": "10.0.0.0/31" }]] }), "no room"),
            (
                json!({ "ranges": [[{ "subnet": "10.0.0.0/24" }], [{ "subnet": "10.0.0.128/25" }]] }),
                "overlaps",
            ),
            (json!({ "ranges": [[{ "subnet": "10.0.0.0/24", "gateway": "fd00::1" }]] }), "family"),
            (json!({ "subnet": "ten" }), "subnet"),
            (json!({ "subnet": "10.0.0.0/24", "rangeStart": "10.0.0.255" }), "rangeStart"),
            (json!({ "subnet": "10.0.0.0/24", "rangeEnd": "10.0.0.0" }), "rangeEnd"),
        ] {
            let error = compile(keys.clone()).unwrap_err();
            assert!(error.contains(why), "{keys}: {error}");
        }
        assert!(HostLocal::compile(&json!({}), true).is_ok(), "the runtime may pass them");
    }
}
