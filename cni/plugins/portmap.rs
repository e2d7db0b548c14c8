//! `portmap`: ports of the host lead to the pod.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use crate::call::Call;
use crate::ipam;
use crate::nftables::conntrack;
use crate::nftables::ports::{self, Mapping};
use crate::result::CniResult;
use crate::{Context, Error, Protocol, Result};

/// The plugin's keys.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
struct Keys {
    /// Connections whose answers would not come back through the host are masqueraded.
    snat: bool,
    backend: Option<String>,
    #[serde(rename = "markMasqBit")]
    mark_bit: Option<u32>,
    #[serde(rename = "externalSetMarkChain")]
    mark_chain: Option<String>,
    #[serde(rename = "masqAll")]
    masquerade_all: bool,
    #[serde(rename = "conditionsV4")]
    conditions_v4: Option<Vec<String>>,
    #[serde(rename = "conditionsV6")]
    conditions_v6: Option<Vec<String>>,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            snat: true,
            backend: None,
            mark_bit: None,
            mark_chain: None,
            masquerade_all: false,
            conditions_v4: None,
            conditions_v6: None,
        }
    }
}

/// The plugin.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Portmap {
    snat: bool,
}

impl Portmap {
    /// Reads and checks the keys. `Err(key)` in the inner result: a key that only the reference plugin can follow, since it
    /// is about its own rules.
    pub(super) fn compile(
        config: &Value,
    ) -> std::result::Result<std::result::Result<Self, &'static str>, String> {
        let keys: Keys = ipam::keys(config)?;
        let some = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
        let foreign = [
            (keys.backend.as_deref().is_some_and(|backend| backend != "nftables"), "backend"),
            (keys.mark_bit.is_some(), "markMasqBit"),
            (keys.mark_chain.as_deref().is_some_and(|chain| !chain.is_empty()), "externalSetMarkChain"),
            (keys.masquerade_all, "masqAll"),
            (some(&keys.conditions_v4), "conditionsV4"),
            (some(&keys.conditions_v6), "conditionsV6"),
        ];
        Ok(match foreign.into_iter().find(|(is, _)| *is) {
            Some((_, key)) => Err(key),
            None => Ok(Self { snat: keys.snat }),
        })
    }

    pub(super) async fn add(&self, call: &Call<'_>, previous: CniResult) -> Result<CniResult> {
        // The addresses may have been another pod's just before.
        call.host.forgetting.end(&addresses(&previous)).await;
        let mappings = mappings(call, &previous)?;
        if mappings.is_empty() {
            return Ok(previous);
        }
        if let Some(port) = ambiguous(&mappings) {
            let why = format!("host port {port} maps to two container ports");
            return Err(Error::Invalid(format!("invalid portMappings: {why}")));
        }
        if self.snat {
            for link in leading_to_pod(call, &previous).await? {
                let file = format!("/proc/sys/net/ipv4/conf/{link}/route_localnet");
                std::fs::write(&file, "1").doing(format!("write {file}"))?;
            }
        }
        for v4 in [true, false] {
            if mappings.iter().any(|mapping| mapping.pod.addr().is_ipv4() == v4) {
                call.host.ready.forward(v4).await?;
            }
        }
        let udp = udp_ports(call);
        match ports::apply(call, &mappings, self.snat).await {
            Ok(()) => {}
            Err(error) => {
                let undone = ports::forget(call, Some(&mappings)).await;
                return Err(super::with_undo(error, [undone]));
            }
        }
        // What the kernel remembers of another pod that had the port.
        conntrack::forget_ports(udp).await?;
        Ok(previous)
    }

    pub(super) async fn check(&self, call: &Call<'_>, previous: &CniResult) -> Result<()> {
        for mapping in mappings(call, previous)? {
            if !ports::is_there(&mapping).await? {
                let port = mapping.host_port;
                return Err(Error::Invalid(format!(
                    "portmap: port {port} of the host does not lead to the pod"
                )));
            }
        }
        Ok(())
    }
}

pub(super) async fn del(call: &Call<'_>, previous: &CniResult) -> Result<()> {
    // The daemon has a record of what it has asked for.
    if call.namespace_ends && call.runtime.port_mappings.is_empty() {
        return Ok(());
    }
    let known = mappings(call, previous).ok().filter(|all| call.knows_all && !all.is_empty());
    let released = ports::forget(call, known.as_deref()).await;
    let forgotten = match call.namespace_ends {
        true => {
            call.host.forgetting.begin(addresses(previous));
            Ok(())
        }
        // A process that ends at once forgets before.
        false => conntrack::forget_pods(addresses(previous)).await,
    };
    released.and(forgotten).and(conntrack::forget_ports(udp_ports(call)).await)
}

fn addresses(result: &CniResult) -> Vec<IpAddr> {
    result.ips.iter().map(|ip| ip.address.addr()).collect()
}

fn udp_ports(call: &Call<'_>) -> Vec<u16> {
    let ports = call.runtime.port_mappings.iter().filter(|port| port.protocol.eq_ignore_ascii_case("udp"));
    ports.map(|port| port.host_port).collect()
}

/// A port that is asked for twice, for two places.
fn ambiguous(mappings: &[Mapping]) -> Option<u16> {
    let mut known = std::collections::HashMap::new();
    mappings.iter().find_map(|mapping| {
        let from = (mapping.protocol.name(), mapping.host_port, mapping.host_address, mapping.pod.addr());
        let before = known.insert(from, mapping.pod_port);
        before.is_some_and(|port| port != mapping.pod_port).then_some(mapping.host_port)
    })
}

/// Each port with each address of the pod of the same family, and only the first of that: a port leads to one place.
fn mappings(call: &Call<'_>, result: &CniResult) -> Result<Vec<Mapping>> {
    let mut all = Vec::new();
    for port in &call.runtime.port_mappings {
        let (name, address) = (port.protocol.to_ascii_lowercase(), port.address()?);
        let protocol = Protocol::parse(&name)
            .ok_or_else(|| Error::Invalid(format!("portmap: {name:?} is no protocol of ports")))?;
        if port.host_port == 0 || port.container_port == 0 {
            return Err(Error::Invalid("portmap: a port is zero".to_owned()));
        }
        // 0.0.0.0 and :: are all addresses of their family.
        let family = port.host_ip.parse::<IpAddr>().ok().map(|address| address.is_ipv4());
        for v4 in [true, false].into_iter().filter(|v4| family.is_none_or(|family| family == *v4)) {
            let Some(ip) = result.ips.iter().find(|ip| ip.address.addr().is_ipv4() == v4) else { continue };
            all.push(Mapping {
                protocol,
                host_port: port.host_port,
                host_address: address,
                pod: ip.address,
                pod_port: port.container_port,
            });
        }
    }
    Ok(all)
}

/// The links of the host by which it reaches the pod over IPv4.
async fn leading_to_pod(call: &Call<'_>, result: &CniResult) -> Result<Vec<String>> {
    let mut links = Vec::new();
    for ip in result.ips.iter().filter(|ip| ip.address.addr().is_ipv4()) {
        if let Some(index) = call.host.links.link_to(ip.address.addr()).await?
            && let Some(link) = call.host.links.link_at(index).await?
            && link.name != "lo"
        {
            links.push(link.name);
        }
    }
    Ok(links)
}
