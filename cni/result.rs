//! What a plugin answers, and what it is told of those before it (CNI specification, "Section 5: Result Types"): one form
//! in here, the form of the network's version outside.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::conflist::Version;

/// The whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CniResult {
    /// Of the host and of the pod, in the order in which plugins made them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Addresses of the pod.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<Ip>,
    /// Routes of the pod.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Name servers; the kubelet has its own and does not ask.
    pub dns: Dns,
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Bytes (since 1.1).
    #[serde(skip_serializing_if = "is_zero")]
    pub mtu: u32,
    /// The path of the network namespace that it is in; none of the host's.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// A socket that stands for it (since 1.1).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    /// The device behind it (since 1.1).
    #[serde(rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ip {
    /// With the length of its subnet.
    pub address: IpNet,
    /// The gateway of its subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Which of the interfaces has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub dst: IpNet,
    /// By whom; the gateway of the address of the same family where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// Bytes (since 1.1).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mtu: u32,
    /// Bytes of a TCP segment (since 1.1).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub advmss: u32,
    /// Lower is preferred (since 1.1).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: u32,
    /// The routing table (since 1.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// 0 the world, 253 the link, 254 the host (since 1.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl Route {
    /// A route without any of the finer points.
    #[must_use]
    pub fn new(dst: IpNet, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, mtu: 0, advmss: 0, priority: 0, table: None, scope: None }
    }
}

/// Name servers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Their addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Where short names are looked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Of the resolver.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl CniResult {
    /// Reads a result of any version; `null` is an empty one.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(value: &Value) -> Result<Self, String> {
        match value {
            Value::Null => Ok(Self::default()),
            value => Self::deserialize(berth_json::NullIsAbsent(value)).map_err(|error| error.to_string()),
        }
    }

    /// In the form of a version.
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

    /// The gateway of the addresses of a family.
    #[must_use]
    pub fn gateway(&self, v4: bool) -> Option<IpAddr> {
        self.ips.iter().filter_map(|ip| ip.gateway).find(|gateway| gateway.is_ipv4() == v4)
    }

    /// The routes; those that name no gateway go by that of their family, where there is one.
    pub fn routes_with_gateways(&self) -> impl Iterator<Item = Route> {
        self.routes.iter().map(|route| {
            let gw = route.gw.or_else(|| self.gateway(route.dst.addr().is_ipv4()));
            Route { gw, ..route.clone() }
        })
    }

    /// Interfaces of the pod, with their places.
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
    fn what_is_null_in_a_result_is_not_there() {
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
