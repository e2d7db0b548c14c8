//! IPAM: the addresses of a pod. Plugins that create interfaces delegate to it (CNI specification, "Section 4: Plugin
//! Delegation").
//!
//! * [`host_local`]: ranges of this host, in the reference plugin's file format
//! * `dhcp`: see [`crate::dhcp`]
//! * [`fixed`]: addresses from the configuration or the runtime (`static`)
//! * any other type runs as a program

pub(crate) mod fixed;
pub(crate) mod host_local;

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use serde_json::Value;

use crate::call::Call;
use crate::dhcp::{Dhcp, LeaseOwner};
use crate::external::{Program, Search, find};
use crate::files::blocking;
use crate::host::Host;
use crate::netlink::Netlink;
use crate::result::{CniResult, Dns, Ip, Route};
use crate::version::Version;
use crate::{Context, Error, Result};

use fixed::Fixed;
use host_local::HostLocal;

/// Allocates the addresses of the pod's interface. If the IPAM plugin needs the link, it is brought up before.
pub(crate) async fn allocate(
    ipam: Option<&Ipam>,
    call: &Call<'_>,
    config: &Value,
    inside: &Netlink,
) -> Result<CniResult> {
    let Some(ipam) = ipam else { return Ok(CniResult::default()) };
    if ipam.needs_link() {
        let link = inside.existing(call.interface).await?;
        inside.set_up(link.index, false).await?;
    }
    ipam.add(call, config).await
}

/// Releases the addresses of [`allocate`]. Does nothing without an IPAM plugin.
pub(crate) async fn release(ipam: Option<&Ipam>, call: &Call<'_>, config: &Value) -> Result<()> {
    match ipam {
        Some(ipam) => ipam.del(call, config).await,
        None => Ok(()),
    }
}

/// The built-in IPAM plugins.
pub const BUILT_IN_IPAM: [&str; 3] = ["dhcp", "host-local", "static"];

/// An IPAM plugin.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Ipam {
    /// `host-local`: addresses of ranges, recorded in files.
    HostLocal(HostLocal),
    /// `static`: the addresses of the configuration.
    Static(Fixed),
    /// `dhcp`: a lease of a DHCP server.
    Dhcp,
    /// A plugin program.
    External(Program),
}

impl Ipam {
    /// Compiles the `ipam` section of a plugin's configuration. Returns `None` if the plugin does not assign addresses.
    pub(crate) fn compile(config: &Value, search: &Search) -> std::result::Result<Option<Self>, String> {
        let Some(ipam) = config.get("ipam").filter(|ipam| !ipam.is_null()) else { return Ok(None) };
        let kind = ipam.get("type").and_then(Value::as_str).unwrap_or_default();
        let has_capability =
            |name: &str| config.pointer(&format!("/capabilities/{name}")) == Some(&Value::Bool(true));
        let built_in = !search.external.iter().any(|external| external == kind);
        let with_key = |why: String| format!("ipam.{why}");
        match kind {
            "" => Ok(None),
            "host-local" if built_in => HostLocal::compile(ipam, has_capability("ipRanges"))
                .map(Self::HostLocal)
                .map(Some)
                .map_err(with_key),
            "static" if built_in => {
                Fixed::compile(ipam, has_capability("ips")).map(Self::Static).map(Some).map_err(with_key)
            }
            "dhcp" if built_in && search.daemon => {
                crate::dhcp::check(ipam).map(|()| Some(Self::Dhcp)).map_err(with_key)
            }
            kind => find(kind, search).map(Self::External).map(Some).map_err(with_key),
        }
    }

    /// Like [`Ipam::compile`], for a program: values that a runtime passes are already in the configuration.
    pub(crate) fn compile_for_program(
        config: &Value,
        search: &Search,
    ) -> std::result::Result<Option<Self>, String> {
        let mut config = config.clone();
        if let Some(config) = config.as_object_mut() {
            config.insert("capabilities".to_owned(), serde_json::json!({ "ipRanges": true, "ips": true }));
        }
        Self::compile(&config, search)
    }

    /// Whether the plugin sends messages on the link, which must be up for that.
    pub(crate) fn needs_link(&self) -> bool {
        match self {
            Self::External(program) => program.kind == "dhcp",
            Self::Dhcp => true,
            Self::HostLocal(_) | Self::Static(_) => false,
        }
    }

    /// Allocates addresses.
    pub(crate) async fn add(&self, call: &Call<'_>, config: &Value) -> Result<CniResult> {
        let result = match self {
            Self::HostLocal(ipam) => ipam.add(call, config).await?,
            Self::Static(ipam) => ipam.add(call, config)?,
            Self::Dhcp => lease(call, config).await?,
            Self::External(program) => {
                let answer = program.run(call, "ADD", config, None).await?;
                CniResult::parse(&answer).map_err(|why| program.failed(why))?
            }
        };
        match result.ips.is_empty() {
            true => Err(Error::Invalid("invalid IPAM result: no address".to_owned())),
            false => Ok(result),
        }
    }

    /// Releases addresses, if there are any.
    pub(crate) async fn del(&self, call: &Call<'_>, config: &Value) -> Result<()> {
        match self {
            Self::HostLocal(ipam) => ipam.del(call).await,
            Self::Static(_) => Ok(()),
            Self::Dhcp => dhcp_client(call)?.release(&lease_owner(call), call.netns).await,
            Self::External(program) => program.run(call, "DEL", config, None).await.map(drop),
        }
    }

    /// Checks that the addresses are still allocated.
    pub(crate) async fn check(&self, call: &Call<'_>, config: &Value, previous: &CniResult) -> Result<()> {
        match self {
            Self::HostLocal(ipam) => ipam.check(call).await,
            Self::Static(ipam) => ipam.check(call, config, previous),
            Self::Dhcp => {
                let lease = dhcp_client(call)?.check(&lease_owner(call))?;
                match previous.ips.iter().any(|ip| ip.address == IpNet::V4(lease.address)) {
                    true => Ok(()),
                    false => Err(Error::Invalid(format!("dhcp: {} is not in the result", lease.address))),
                }
            }
            Self::External(program) => {
                program.run(call, "CHECK", config, Some(&previous.to_value(call.version))).await.map(drop)
            }
        }
    }

    /// The subnets of the addresses that the configuration specifies.
    pub(crate) fn subnets(&self) -> Vec<IpNet> {
        match self {
            Self::HostLocal(ipam) => ipam.ranges.iter().flatten().map(|range| range.subnet).collect(),
            Self::Static(_) | Self::Dhcp | Self::External(_) => Vec::new(),
        }
    }

    /// The folder of a network's addresses, if this plugin keeps them on this host.
    pub(crate) fn address_folder(&self, data_dir: &Path, network: &str) -> Option<std::path::PathBuf> {
        match self {
            Self::HostLocal(ipam) => Some(ipam.folder(data_dir, network)),
            Self::Static(_) | Self::Dhcp | Self::External(_) => None,
        }
    }

    /// Whether the plugin is a program.
    pub(crate) fn is_external(&self) -> bool {
        matches!(self, Self::External(_))
    }

    /// Releases the addresses of a network's pods that are not in `live`. Returns them.
    pub(crate) async fn gc(&self, host: &Host, network: &str, live: &HashSet<String>) -> Result<Vec<String>> {
        match self {
            Self::HostLocal(ipam) => {
                let (store, live) = (ipam.store(host, host.data_dir(), network), live.clone());
                blocking(move || store.release_where(|owner| !live.contains(&owner.container))).await
            }
            Self::Dhcp => {
                let Some(dhcp) = &host.dhcp else { return Ok(Vec::new()) };
                let released =
                    dhcp.release_where(|owner| owner.network == network && !live.contains(&owner.container));
                let freed = released.await?.into_iter().map(|owner| format!("lease of {}", owner.container));
                Ok(freed.collect())
            }
            Self::Static(_) | Self::External(_) => Ok(Vec::new()),
        }
    }

    /// Whether addresses can be allocated (since 1.1).
    pub(crate) async fn status(&self, call: &Call<'_>, config: &Value) -> Result<()> {
        match self {
            Self::External(program) if call.version >= Version::V1_1_0 => {
                program.run(call, "STATUS", config, None).await.map(drop)
            }
            _ => Ok(()),
        }
    }
}

/// Returns the DHCP client, which only a daemon has.
fn dhcp_client<'a>(call: &'a Call<'_>) -> Result<&'a Dhcp> {
    let none = || Error::Unsupported("dhcp: requires the daemon, which renews leases".to_owned());
    call.host.dhcp.as_ref().ok_or_else(none)
}

/// The owner of the call's lease.
fn lease_owner(call: &Call<'_>) -> LeaseOwner {
    LeaseOwner {
        container: call.container.to_owned(),
        network: call.network.to_owned(),
        interface: call.interface.to_owned(),
    }
}

async fn lease(call: &Call<'_>, config: &Value) -> Result<CniResult> {
    let ipam = config.get("ipam").unwrap_or(&Value::Null);
    let lease = dhcp_client(call)?.acquire(&lease_owner(call), call.pod_netns()?, ipam, call.args).await?;
    let route = |route: crate::dhcp::OfferedRoute| Route {
        priority: route.priority,
        ..Route::new(IpNet::V4(route.to), route.via.map(IpAddr::V4))
    };
    let gateway = lease.gateway.map(IpAddr::V4);
    Ok(CniResult {
        ips: vec![Ip { address: IpNet::V4(lease.address), gateway, interface: None }],
        routes: lease.routes.into_iter().map(route).collect(),
        dns: Dns {
            nameservers: lease.name_servers.iter().map(ToString::to_string).collect(),
            domain: lease.domain.unwrap_or_default(),
            ..Dns::default()
        },
        ..CniResult::default()
    })
}

/// Returns the requested addresses: of the runtime, of the network's arguments and of `CNI_ARGS`, with their prefix
/// lengths if specified.
pub(crate) fn requested(call: &Call<'_>, config: &Value) -> Result<Vec<(IpAddr, Option<u8>)>> {
    let arguments = config.pointer("/args/cni/ips").and_then(Value::as_array);
    let arguments = arguments.into_iter().flatten().filter_map(Value::as_str);
    let of_args = call.args.get("IP").map(String::as_str).into_iter().flat_map(|list| list.split(','));
    let of_runtime = call.runtime.ips.iter().map(String::as_str);
    let parse = |text: &str| {
        let text = text.trim();
        let with_length = text.parse::<IpNet>().ok().map(|net| (net.addr(), Some(net.prefix_len())));
        with_length
            .or_else(|| text.parse().ok().map(|address| (address, None)))
            .ok_or_else(|| Error::Invalid(format!("invalid address {text:?}")))
    };
    let mut all = Vec::new();
    for address in of_runtime.chain(arguments).chain(of_args.filter(|text| !text.is_empty())) {
        let address = parse(address)?;
        if !all.iter().any(|(other, _)| *other == address.0) {
            all.push(address);
        }
    }
    Ok(all)
}

/// Reads the DNS configuration of a file (resolv.conf(5)).
pub(crate) fn resolv_conf(file: &Path) -> Result<Dns> {
    let text = std::fs::read_to_string(file).doing(format!("read {}", file.display()))?;
    let mut dns = Dns::default();
    for line in text.lines().filter(|line| !line.starts_with(['#', ';'])) {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => dns.nameservers.extend(words.next()),
            Some("domain") => dns.domain = words.next().unwrap_or_default(),
            Some("search") => dns.search.extend(words),
            Some("options") => dns.options.extend(words),
            _ => {}
        }
    }
    Ok(dns)
}
