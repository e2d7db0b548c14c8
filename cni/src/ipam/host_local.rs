//! The IPAM plugin `host-local`: ranges of this host's addresses. A node that used the reference plugin keeps its
//! addresses: see [`crate::addresses`].

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::requested;
use crate::addresses::{Owner, Store, check, overlaps};
use crate::call::Call;
use crate::files::blocking;
use crate::host::Host;
use crate::result::{CniResult, Route};
use crate::runtime_config::RangeEntry as Range;
use crate::{Error, Result, keys};

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
        let mut keys: Self = keys::parse(ipam)?;
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
            true => Err(Error::Invalid("invalid ipam: no ranges are configured".to_owned())),
            false => overlaps(&all).map(|()| all).map_err(Error::Invalid),
        }
    }

    /// The address store of a network, in `data_dir` unless the keys name another folder.
    pub(crate) fn store(&self, host: &Host, data_dir: &Path, network: &str) -> Store {
        Store::new(self.folder(data_dir, network), &host.addresses)
    }

    /// The folder of a network's addresses.
    pub(super) fn folder(&self, data_dir: &Path, network: &str) -> PathBuf {
        self.data_dir.as_deref().unwrap_or(data_dir).join(network)
    }

    fn store_of(&self, call: &Call<'_>) -> Store {
        self.store(call.host, call.data_dir, call.network)
    }

    /// Allocates addresses. They are on disk before they are used.
    pub(super) async fn add(&self, call: &Call<'_>, config: &Value) -> Result<CniResult> {
        let (store, ranges) = (self.store_of(call), self.all_ranges(call)?);
        let (owner, requested) = (owner_of(call), requested(call, config)?);
        let requested: Vec<IpAddr> = requested.into_iter().map(|(address, _)| address).collect();
        let ips = blocking(move || store.allocate(&ranges, &owner, &requested)).await?;
        let dns = match &self.resolv_conf {
            Some(file) => super::resolv_conf(file)?,
            None => crate::result::Dns::default(),
        };
        Ok(CniResult { ips, routes: self.routes.clone(), dns, ..CniResult::default() })
    }

    pub(super) async fn del(&self, call: &Call<'_>) -> Result<()> {
        let (store, owner) = (self.store_of(call), owner_of(call));
        blocking(move || store.release(&owner)).await
    }

    pub(super) async fn check(&self, call: &Call<'_>) -> Result<()> {
        let (store, owner) = (self.store_of(call), owner_of(call));
        match blocking(move || store.has(&owner)).await? {
            true => Ok(()),
            false => Err(Error::Invalid(format!("host-local: {} has no address", call.container))),
        }
    }
}

fn owner_of(call: &Call<'_>) -> Owner {
    Owner { container: call.container.to_owned(), interface: call.interface.to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_keys_are_checked() {
        let compile = |keys: Value| HostLocal::compile(&keys, false);
        let old = compile(json!({ "subnet": "10.2.0.0/24", "gateway": "10.2.0.254" })).unwrap();
        assert_eq!(old.ranges[0][0].gateway, "10.2.0.254".parse().ok());
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
