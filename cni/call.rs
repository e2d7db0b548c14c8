//! The parameters of a plugin call, the same for built-in plugins and programs: those of the CNI specification
//! ("Section 2: Execution Protocol"), with file descriptors instead of paths.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::conflist::Version;
use crate::host::Host;
use crate::netlink::{Link, Netlink};
use crate::nftables::Comment;
use crate::{Result, netns};

/// One call of one plugin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'a> {
    /// The network's name.
    pub(crate) network: &'a str,
    /// The version of the specification that its configuration is written in.
    pub(crate) version: Version,
    /// The pod's id.
    pub(crate) container: &'a str,
    /// The interface in the pod.
    pub(crate) interface: &'a str,
    /// The pod's network namespace, if it still exists.
    pub(crate) netns: Option<BorrowedFd<'a>>,
    /// The path of the network namespace, for results and programs.
    pub(crate) sandbox: &'a str,
    /// The namespace is destroyed after this call, and its links with it. They need not be removed one by one, which
    /// costs 20 ms each (RCU).
    pub(crate) namespace_ends: bool,
    /// The result lists everything that the plugins created. Only built-in plugins ran: a program could have changed
    /// the result.
    pub(crate) knows_all: bool,
    /// The runtime's configuration (`runtimeConfig`).
    pub(crate) runtime: &'a RuntimeConfig,
    /// `CNI_ARGS`, parsed.
    pub(crate) args: &'a BTreeMap<String, String>,
    /// `CNI_ARGS`, for programs.
    pub(crate) args_text: &'a str,
    /// `CNI_PATH`, for programs.
    pub(crate) bin_path: &'a str,
    /// The folder of allocated addresses, unless the configuration names another.
    pub(crate) data_dir: &'a Path,
    /// The host.
    pub(crate) host: &'a Host,
}

impl Call<'_> {
    /// Opens a netlink connection in the pod's namespace.
    pub(crate) async fn inside(&self) -> Result<Netlink> {
        netns::open(self.pod_netns()?).await
    }

    /// Returns the pod's network namespace, or an error if it does not exist.
    pub(crate) fn pod_netns(&self) -> Result<BorrowedFd<'_>> {
        let gone = || crate::Error::Invalid("network namespace not found".to_owned());
        self.netns.as_ref().map(AsFd::as_fd).ok_or_else(gone)
    }

    /// Describes the pod's interface as part of a result.
    pub(crate) fn interface_of(&self, link: &Link) -> crate::result::Interface {
        crate::result::Interface {
            name: link.name.clone(),
            mac: link.mac_text(),
            mtu: link.mtu,
            sandbox: self.sandbox.to_owned(),
            ..Default::default()
        }
    }

    /// The hardware address that the runtime requests in `CNI_ARGS`.
    pub(crate) fn argument_mac(&self) -> Option<&str> {
        self.args.get("MAC").map(String::as_str)
    }

    /// The comment that marks rules as belonging to this attachment.
    pub(crate) fn owner(&self) -> Comment {
        Comment::new(self.network, self.container, self.interface)
    }

    /// The alias of links on the host (`ip link` shows it as `alias`). It identifies the attachment that owns the link.
    pub(crate) fn alias(&self) -> String {
        alias(self.network, self.container)
    }

    /// The folder for state that outlives a call.
    pub(crate) fn state(&self) -> &Path {
        self.host.state_dir()
    }
}

/// See [`Call::alias`].
pub(crate) fn alias(network: &str, container: &str) -> String {
    format!("berth {network} {container}")
}

/// Returns the pod of a link's alias. Neither a network's name nor a pod's id contains a space.
pub(crate) fn pod_of_alias(alias: &str) -> Option<&str> {
    alias.strip_prefix("berth ")?.split_once(' ').map(|(_, container)| container)
}

/// Returns the first hardware address that is set. The order of precedence differs among the reference plugins.
pub(crate) fn first_mac<const N: usize>(requested: [Option<&str>; N]) -> Result<Option<Vec<u8>>> {
    requested.into_iter().flatten().find(|mac| !mac.is_empty()).map(parse_mac).transpose()
}

/// Parses a hardware address: six bytes in hexadecimal.
pub(crate) fn parse_mac(text: &str) -> Result<Vec<u8>> {
    let bytes: Option<Vec<u8>> = text
        .split([':', '-'])
        .map(|byte| u8::from_str_radix(byte, 16).ok().filter(|_| byte.len() == 2))
        .collect();
    bytes
        .filter(|bytes| bytes.len() == 6)
        .ok_or_else(|| crate::Error::Invalid(format!("invalid hardware address {text:?}")))
}

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
        let address = parsed
            .ok_or_else(|| crate::Error::Invalid(format!("invalid host address {:?}", self.host_ip)))?;
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
    /// The subnet.
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

/// Parses `KEY=value;...` (CNI specification, `CNI_ARGS`).
pub(crate) fn parse_args(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split(';').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}
