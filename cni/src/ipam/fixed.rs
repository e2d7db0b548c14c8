//! The IPAM plugin `static`: addresses from the configuration or the runtime.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::requested;
use crate::call::Call;
use crate::result::{CniResult, Dns, Ip, Route};
use crate::{Error, Result, keys};

/// The plugin's keys.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Fixed {
    addresses: Vec<Address>,
    routes: Vec<Route>,
    dns: Dns,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
struct Address {
    address: String,
    gateway: Option<IpAddr>,
}

impl Fixed {
    /// Parses and checks the keys. If `dynamic`, a runtime may pass addresses: none are required.
    pub(super) fn compile(ipam: &Value, dynamic: bool) -> std::result::Result<Self, String> {
        let keys: Self = keys::parse(ipam)?;
        for (place, address) in keys.addresses.iter().enumerate() {
            // The address must have a prefix length; the gateway is optional.
            if address.address.parse::<IpNet>().is_err() {
                return Err(format!("addresses[{place}].address: invalid subnet {:?}", address.address));
            }
        }
        if keys.addresses.is_empty() && !dynamic {
            // CNI_ARGS can contain addresses, too.
            tracing::debug!("static: no addresses in the configuration");
        }
        Ok(keys)
    }

    fn ips(&self, call: &Call<'_>, config: &Value) -> Result<Vec<Ip>> {
        let addresses = requested(call, config)?;
        if addresses.is_empty() {
            let configured = self.addresses.iter().filter_map(|address| {
                let net = address.address.parse().ok()?;
                Some(Ip { address: net, gateway: address.gateway, interface: None })
            });
            return Ok(configured.collect());
        }
        let gateways: Vec<IpAddr> = call
            .args
            .get("GATEWAY")
            .into_iter()
            .flat_map(|list| list.split(','))
            .filter_map(|gateway| gateway.trim().parse().ok())
            .collect();
        addresses
            .into_iter()
            .map(|(address, length)| {
                let length = length
                    .ok_or_else(|| Error::Invalid(format!("invalid address {address}: no prefix length")))?;
                let address =
                    IpNet::new(address, length).map_err(|error| Error::Invalid(error.to_string()))?;
                let gateway = gateways.iter().copied().find(|gateway| address.contains(gateway));
                Ok(Ip { address, gateway, interface: None })
            })
            .collect()
    }

    pub(super) fn add(&self, call: &Call<'_>, config: &Value) -> Result<CniResult> {
        let ips = self.ips(call, config)?;
        Ok(CniResult { ips, routes: self.routes.clone(), dns: self.dns.clone(), ..CniResult::default() })
    }

    pub(super) fn check(&self, call: &Call<'_>, config: &Value, previous: &CniResult) -> Result<()> {
        for ip in self.ips(call, config)? {
            if !previous.ips.iter().any(|recorded| recorded.address == ip.address) {
                return Err(Error::Invalid(format!("static: {} is not in the result", ip.address)));
            }
        }
        Ok(())
    }
}
