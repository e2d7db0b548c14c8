//! The configuration that a runtime passes to plugins by their capabilities (`runtimeConfig`).

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The configuration that a runtime passes to plugins that declare the capability (CNI conventions, "Dynamic Plugin
/// specific fields").
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RuntimeConfig {
    /// Host ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMappingEntry>,
    /// Traffic limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// Address ranges, from `UpdateRuntimeConfig`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ip_ranges: Vec<Vec<RangeEntry>>,
    /// Requested addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<String>,
    /// The requested hardware address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Aliases of the pod.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// The device of the pod.
    #[serde(rename = "deviceID", skip_serializing_if = "Option::is_none")]
    pub device_id: Option<String>,
    /// DNS configuration of the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<DnsConfig>,
    /// The pod's annotations, under the name that containerd gives them.
    #[serde(rename = "io.kubernetes.cri.pod-annotations", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The path of the pod's cgroup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup_path: Option<String>,
}

/// DNS configuration of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsConfig {
    /// Addresses of the name servers.
    pub servers: Vec<String>,
    /// Search domains for short names.
    pub searches: Vec<String>,
    /// Options of the resolver.
    pub options: Vec<String>,
}

/// A host port and the container port that it is forwarded to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMappingEntry {
    /// The port on the host.
    pub host_port: u16,
    /// The port in the pod.
    pub container_port: u16,
    /// `tcp`, `udp`, `sctp`.
    #[serde(default = "tcp")]
    pub protocol: String,
    /// An address of the host; empty for all addresses.
    #[serde(rename = "hostIP", default)]
    pub host_ip: String,
}

fn tcp() -> String {
    "tcp".to_owned()
}

impl PortMappingEntry {
    /// Parses the host address. `None` means all addresses.
    pub(crate) fn address(&self) -> Result<Option<IpAddr>> {
        if self.host_ip.is_empty() {
            return Ok(None);
        }
        let parsed: Option<IpAddr> = self.host_ip.parse().ok();
        let address =
            parsed.ok_or_else(|| Error::Invalid(format!("invalid host address {:?}", self.host_ip)))?;
        Ok(Some(address).filter(|address| !address.is_unspecified()))
    }
}

/// Limits of a pod's traffic: rates in bits per second, bursts in bits. Zero means no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Bandwidth {
    /// Rate of traffic to the pod.
    pub ingress_rate: u64,
    /// Burst of traffic to the pod.
    pub ingress_burst: u64,
    /// Rate of traffic from the pod.
    pub egress_rate: u64,
    /// Burst of traffic from the pod.
    pub egress_burst: u64,
}

/// A range of addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RangeEntry {
    /// The subnet from which addresses are assigned.
    pub subnet: IpNet,
    /// The first address. Default: the second address of the subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range_start: Option<IpAddr>,
    /// The last address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range_end: Option<IpAddr>,
    /// The gateway. Default: the first address of the subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}
