//! What a plugin is called with, in-process and as a program alike: the parameters of the CNI specification ("Section 2:
//! Execution Protocol"), with descriptors in the place of paths.

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
    /// The id of the pod.
    pub(crate) container: &'a str,
    /// The interface in the pod.
    pub(crate) interface: &'a str,
    /// The pod's network namespace, while there is one.
    pub(crate) netns: Option<BorrowedFd<'a>>,
    /// Its path, for results and programs.
    pub(crate) sandbox: &'a str,
    /// The namespace dies after this call and takes its links along: they need not be removed one by one, which costs
    /// 20 ms each (RCU).
    pub(crate) namespace_ends: bool,
    /// The result names all that the plugins have made: no program had a part in it, which could have changed it.
    pub(crate) knows_all: bool,
    /// What the runtime says beyond the configuration.
    pub(crate) runtime: &'a RuntimeConfig,
    /// `CNI_ARGS`, taken apart.
    pub(crate) args: &'a BTreeMap<String, String>,
    /// `CNI_ARGS`, for programs.
    pub(crate) args_text: &'a str,
    /// `CNI_PATH`, for programs.
    pub(crate) bin_path: &'a str,
    /// Where addresses are that are taken, unless the configuration says so.
    pub(crate) data_dir: &'a Path,
    /// The host.
    pub(crate) host: &'a Host,
}

impl Call<'_> {
    /// A netlink connection in the pod's namespace.
    pub(crate) async fn inside(&self) -> Result<Netlink> {
        netns::open(self.pod_netns()?).await
    }

    /// The namespace, which must be there.
    pub(crate) fn pod_netns(&self) -> Result<BorrowedFd<'_>> {
        let gone = || crate::Error::Invalid("the network namespace is gone".to_owned());
        self.netns.as_ref().map(AsFd::as_fd).ok_or_else(gone)
    }

    /// The pod's interface as part of a result.
    pub(crate) fn interface_of(&self, link: &Link) -> crate::result::Interface {
        crate::result::Interface {
            name: link.name.clone(),
            mac: link.mac_text(),
            mtu: link.mtu,
            sandbox: self.sandbox.to_owned(),
            ..Default::default()
        }
    }

    /// The hardware address that an argument of the runtime asks for (`CNI_ARGS`).
    pub(crate) fn argument_mac(&self) -> Option<&str> {
        self.args.get("MAC").map(String::as_str)
    }

    /// Whose what is made is.
    pub(crate) fn owner(&self) -> Comment {
        Comment::new(self.network, self.container, self.interface)
    }

    /// What is written on links of the host (`ip link` shows it as `alias`): whose they are.
    pub(crate) fn alias(&self) -> String {
        alias(self.network, self.container)
    }

    /// A folder of what must be kept for all attachments.
    pub(crate) fn state(&self) -> &Path {
        self.host.state_dir()
    }
}

/// See [`Call::alias`].
pub(crate) fn alias(network: &str, container: &str) -> String {
    format!("berth {network} {container}")
}

/// The pod of an alias of a link. Neither a network's name nor a pod's id has a space in it.
pub(crate) fn pod_of_alias(alias: &str) -> Option<&str> {
    alias.strip_prefix("berth ")?.split_once(' ').map(|(_, container)| container)
}

/// The first hardware address that is asked for. Which comes first differs among the reference plugins.
pub(crate) fn first_mac<const N: usize>(asked: [Option<&str>; N]) -> Result<Option<Vec<u8>>> {
    asked.into_iter().flatten().find(|mac| !mac.is_empty()).map(parse_mac).transpose()
}

/// Six bytes in hexadecimal.
pub(crate) fn parse_mac(text: &str) -> Result<Vec<u8>> {
    let bytes: Option<Vec<u8>> = text
        .split([':', '-'])
        .map(|byte| u8::from_str_radix(byte, 16).ok().filter(|_| byte.len() == 2))
        .collect();
    bytes
        .filter(|bytes| bytes.len() == 6)
        .ok_or_else(|| crate::Error::Invalid(format!("{text:?} is no hardware address")))
}

/// What a runtime says to plugins that have the capability (CNI conventions, "Dynamic Plugin specific fields").
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RuntimeConfig {
    /// Ports of the host.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMappingEntry>,
    /// Limits of the traffic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// Ranges of addresses, from UpdateRuntimeConfig.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ip_ranges: Vec<Vec<RangeEntry>>,
    /// Addresses that are asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<String>,
    /// The hardware address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Names of the pod.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// A device of the pod.
    #[serde(rename = "deviceID", skip_serializing_if = "Option::is_none")]
    pub device_id: Option<String>,
    /// Name servers of the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<DnsConfig>,
    /// The pod's annotations, under the name that containerd gives them.
    #[serde(rename = "io.kubernetes.cri.pod-annotations", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Path of the pod's cgroup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup_path: Option<String>,
}

/// Name servers of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsConfig {
    /// Their addresses.
    pub servers: Vec<String>,
    /// Where short names are looked for.
    pub searches: Vec<String>,
    /// Of the resolver.
    pub options: Vec<String>,
}

/// A port of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMappingEntry {
    /// On the host.
    pub host_port: u16,
    /// In the pod.
    pub container_port: u16,
    /// `tcp`, `udp`, `sctp`.
    #[serde(default = "tcp")]
    pub protocol: String,
    /// An address of the host; empty for all.
    #[serde(rename = "hostIP", default)]
    pub host_ip: String,
}

fn tcp() -> String {
    "tcp".to_owned()
}

impl PortMappingEntry {
    /// The address of the host, where it is one.
    pub(crate) fn address(&self) -> Result<Option<IpAddr>> {
        if self.host_ip.is_empty() {
            return Ok(None);
        }
        let parsed: Option<IpAddr> = self.host_ip.parse().ok();
        let address =
            parsed.ok_or_else(|| crate::Error::Invalid(format!("{:?} is no address", self.host_ip)))?;
        Ok(Some(address).filter(|address| !address.is_unspecified()))
    }
}

/// Limits of a pod's traffic: bits a second and bits at once; zero is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Bandwidth {
    /// To the pod.
    pub ingress_rate: u64,
    /// To the pod.
    pub ingress_burst: u64,
    /// From the pod.
    pub egress_rate: u64,
    /// From the pod.
    pub egress_burst: u64,
}

/// A range of addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RangeEntry {
    /// The subnet.
    pub subnet: IpNet,
    /// The first address; the second of the subnet where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range_start: Option<IpAddr>,
    /// The last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range_end: Option<IpAddr>,
    /// The first of the subnet where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// `KEY=value;...` (CNI specification, `CNI_ARGS`).
pub(crate) fn parse_args(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split(';').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}
