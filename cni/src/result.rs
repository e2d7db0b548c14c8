//! Results of plugins (CNI specification, "Section 5: Result Types"). Internally there is one form; plugins receive and
//! return the form of the network's version.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::version::Version;

/// The result of a plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CniResult {
    /// Interfaces of the host and of the pod, in the order of their creation.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Addresses of the pod.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<Ip>,
    /// Routes of the pod.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// DNS configuration. It is not passed to the kubelet, which has its own.
    pub dns: Dns,
}

/// An interface that a plugin created, on the host or in the pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Interface {
    /// The interface's name.
    pub name: String,
    /// The hardware address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// The MTU in bytes (since 1.1).
    #[serde(skip_serializing_if = "is_zero")]
    pub mtu: u32,
    /// The path of the interface's network namespace; empty for the host's.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// A socket that represents the interface (since 1.1).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    /// The PCI device of the interface (since 1.1).
    #[serde(rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
}

/// An address of an interface in the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ip {
    /// The address with the prefix length of its subnet.
    pub address: IpNet,
    /// The gateway of the subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// The index of the interface that has the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
}

/// A route in the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The network that the route leads to.
    pub dst: IpNet,
    /// The gateway. Default: the gateway of an address of the same family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// The MTU in bytes (since 1.1).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mtu: u32,
    /// The maximum TCP segment in bytes (since 1.1).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub advmss: u32,
    /// The metric: lower is preferred (since 1.1).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: u32,
    /// The routing table (since 1.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// The scope: 0 global, 253 link, 254 host (since 1.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl Route {
    /// A route with only a destination and a gateway.
    #[must_use]
    pub fn new(dst: IpNet, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, mtu: 0, advmss: 0, priority: 0, table: None, scope: None }
    }
}

/// DNS configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Addresses of the name servers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Search domains for short names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options of the resolver.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl CniResult {
    /// Parses a result of any version. `null` is an empty result.
    ///
    /// # Errors
    /// The value is not a result.
    pub fn parse(value: &Value) -> Result<Self, String> {
        match value {
            Value::Null => Ok(Self::default()),
            value => Self::deserialize(berth_json::NullIsAbsent(value)).map_err(|error| error.to_string()),
        }
    }

    /// Returns the result in the form of a version.
    pub(crate) fn to_value(&self, version: Version) -> Value {
        let mut result = self.clone();
        if version < Version::V1_1_0 {
            for interface in &mut result.interfaces {
                *interface = Interface {
                    mtu: 0,
                    socket_path: String::new(),
                    pci_id: String::new(),
                    ..std::mem::take(interface)
                };
            }
            for route in &mut result.routes {
                *route = Route::new(route.dst, route.gw);
            }
        }
        let mut value = json!(result);
        let Some(object) = value.as_object_mut() else { return value };
        object.insert("cniVersion".to_owned(), json!(version.text()));
        if version < Version::V1_0_0 {
            for ip in object.get_mut("ips").and_then(Value::as_array_mut).into_iter().flatten() {
                let v6 =
                    ip.get("address").and_then(Value::as_str).is_some_and(|address| address.contains(':'));
                if let Some(ip) = ip.as_object_mut() {
                    ip.insert("version".to_owned(), json!(if v6 { "6" } else { "4" }));
                }
            }
        }
        value
    }

    /// Returns the gateway of the first address of a family that has one.
    #[must_use]
    pub fn gateway(&self, v4: bool) -> Option<IpAddr> {
        self.ips.iter().filter_map(|ip| ip.gateway).find(|gateway| gateway.is_ipv4() == v4)
    }

    /// Returns the routes. A route without a gateway gets that of its family, if there is one.
    pub fn routes_with_gateways(&self) -> impl Iterator<Item = Route> {
        self.routes.iter().map(|route| {
            let gw = route.gw.or_else(|| self.gateway(route.dst.addr().is_ipv4()));
            Route { gw, ..route.clone() }
        })
    }

    /// Returns the interfaces of the pod and their indexes.
    pub fn of_pod(&self) -> impl Iterator<Item = (usize, &Interface)> {
        self.interfaces.iter().enumerate().filter(|(_, interface)| !interface.sandbox.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_has_the_form_of_its_version() {
        let text = json!({
            "cniVersion": "1.1.0",
            "interfaces": [{ "name": "eth0", "mac": "02:00:00:00:00:01", "mtu": 1400, "sandbox": "/run/netns/x" }],
            "ips": [{ "address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 0 },
                    { "address": "fd00::2/64" }],
            "routes": [{ "dst": "0.0.0.0/0", "priority": 5 }],
            "dns": {},
        });
        let result = CniResult::parse(&text).unwrap();
        assert_eq!(result.to_value(Version::V1_1_0), text);
        let old = result.to_value(Version::V0_4_0);
        assert_eq!(old["ips"][0]["version"], "4");
        assert_eq!(old["ips"][1]["version"], "6");
        assert_eq!(old["routes"][0], json!({ "dst": "0.0.0.0/0" }));
        assert_eq!(old["interfaces"][0].get("mtu"), None);
        assert_eq!(CniResult::parse(&old).unwrap().ips, result.ips);
    }

    #[test]
    fn null_in_a_result_means_absent() {
        let text = json!({
            "cniVersion": "1.0.0", "interfaces": [{ "name": "eth0", "mac": null, "sandbox": null }], "routes": null,
            "ips": [{ "address": "10.0.0.2/24", "gateway": null, "interface": null }],
            "dns": { "nameservers": null, "domain": null, "search": null },
        });
        let result = CniResult::parse(&text).unwrap();
        assert_eq!((result.interfaces[0].mac.as_str(), result.ips[0].gateway), ("", None));
        assert_eq!(CniResult::parse(&json!({ "ips": null, "dns": null })).unwrap(), CniResult::default());
    }
}
