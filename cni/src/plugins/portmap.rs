//! The plugin `portmap`: forwards host ports to the pod.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use super::commands::{Choice, Commands};
use crate::call::Call;
use crate::external::{Search, find};
use crate::nftables::conntrack;
use crate::nftables::ports::{self, Mapping};
use crate::result::CniResult;
use crate::{Context, Error, Protocol, Result, keys};

/// The plugin's keys.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
struct PortmapKeys {
    /// Masquerade connections whose answers would not return through the host.
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

impl Default for PortmapKeys {
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

/// A compiled configuration of `portmap`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Portmap {
    snat: bool,
}

impl Portmap {
    /// Compiles and checks the keys. `Err(key)` in the inner result is a key that only the reference plugin supports,
    /// because it concerns that plugin's rules.
    pub(super) fn compile(
        config: &Value,
    ) -> std::result::Result<std::result::Result<Self, &'static str>, String> {
        let keys: PortmapKeys = keys::parse(config)?;
        let some = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
        let foreign = [
            (keys.backend.as_deref().is_some_and(|backend| backend != "nftables"), "backend"),
            (keys.mark_bit.is_some(), "markMasqBit"),
            (keys.mark_chain.as_deref().is_some_and(|chain| !chain.is_empty()), "externalSetMarkChain"),
            (keys.masquerade_all, "masqAll"),
            (some(&keys.conditions_v4), "conditionsV4"),
            (some(&keys.conditions_v6), "conditionsV6"),
        ];
        Ok(match foreign.into_iter().find(|(set, _)| *set) {
            Some((_, key)) => Err(key),
            None => Ok(Self { snat: keys.snat }),
        })
    }
}

impl Commands for Portmap {
    fn read(_kind: &str, config: &Value, search: &Search) -> std::result::Result<Choice<Self>, String> {
        match Self::compile(config)? {
            Ok(portmap) => Ok(Choice::BuiltIn(portmap)),
            // The key concerns rules of another firewall backend, which the program supports.
            Err(key) => find("portmap", search).map(Choice::Program).map_err(|why| {
                format!("{key}: not supported by the built-in portmap, which uses nftables directly; {why}")
            }),
        }
    }

    async fn add(&self, call: &Call<'_>, _config: &Value, previous: CniResult) -> Result<CniResult> {
        // The addresses may recently have belonged to another pod.
        call.host.forgetting.wait_for(&addresses(&previous)).await;
        let mappings = mappings(call, &previous)?;
        if mappings.is_empty() {
            return Ok(previous);
        }
        if let Some(port) = ambiguous(&mappings) {
            let why = format!("host port {port} maps to two container ports");
            return Err(Error::Invalid(format!("invalid portMappings: {why}")));
        }
        if self.snat {
            for link in links_to_pod(call, &previous).await? {
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
        match ports::apply(&call.rules(), &mappings, self.snat).await {
            Ok(()) => {}
            Err(error) => {
                let undone = ports::remove(&call.rules(), Some(&mappings)).await;
                return Err(super::with_undo(error, [undone]));
            }
        }
        // The kernel may track connections to another pod that had the port.
        conntrack::forget_ports(udp).await?;
        Ok(previous)
    }

    async fn del(&self, call: &Call<'_>, _config: &Value, previous: &CniResult) -> Result<()> {
        // The daemon has a record of the ports that it requested.
        if call.namespace_ends && call.runtime.port_mappings.is_empty() {
            return Ok(());
        }
        let recorded = mappings(call, previous).ok().filter(|all| call.knows_all && !all.is_empty());
        let released = ports::remove(&call.rules(), recorded.as_deref()).await;
        let forgotten = match call.namespace_ends {
            true => {
                call.host.forgetting.start(addresses(previous));
                Ok(())
            }
            // A process that exits after the call removes the entries now.
            false => conntrack::forget_pods(addresses(previous)).await,
        };
        released.and(forgotten).and(conntrack::forget_ports(udp_ports(call)).await)
    }

    async fn check(&self, call: &Call<'_>, _config: &Value, previous: &CniResult) -> Result<()> {
        for mapping in mappings(call, previous)? {
            if !ports::is_mapped(&mapping).await? {
                let port = mapping.host_port;
                return Err(Error::Invalid(format!("portmap: host port {port} is not mapped to the pod")));
            }
        }
        Ok(())
    }

    async fn restore(&self, call: &Call<'_>, result: &CniResult) -> Result<bool> {
        let any = !call.runtime.port_mappings.is_empty();
        self.add(call, &Value::Null, result.clone()).await.map(|_| any)
    }

    fn is_chained(&self) -> bool {
        true
    }
}

fn addresses(result: &CniResult) -> Vec<IpAddr> {
    result.ips.iter().map(|ip| ip.address.addr()).collect()
}

fn udp_ports(call: &Call<'_>) -> Vec<u16> {
    let ports = call.runtime.port_mappings.iter().filter(|port| port.protocol.eq_ignore_ascii_case("udp"));
    ports.map(|port| port.host_port).collect()
}

/// Returns a host port that is mapped to two different ports.
fn ambiguous(mappings: &[Mapping]) -> Option<u16> {
    let mut targets = std::collections::HashMap::new();
    mappings.iter().find_map(|mapping| {
        let source = (mapping.protocol.name(), mapping.host_port, mapping.host_address, mapping.pod.addr());
        let previous = targets.insert(source, mapping.pod_port);
        previous.is_some_and(|port| port != mapping.pod_port).then_some(mapping.host_port)
    })
}

/// Returns the mappings: each port with the pod's first address of each matching family. A port has one target.
fn mappings(call: &Call<'_>, result: &CniResult) -> Result<Vec<Mapping>> {
    let mut all = Vec::new();
    for port in &call.runtime.port_mappings {
        let (name, address) = (port.protocol.to_ascii_lowercase(), port.address()?);
        let protocol = Protocol::parse(&name)
            .ok_or_else(|| Error::Invalid(format!("invalid portMappings: unknown protocol {name:?}")))?;
        if port.host_port == 0 || port.container_port == 0 {
            return Err(Error::Invalid("invalid portMappings: port 0".to_owned()));
        }
        // 0.0.0.0 and :: mean all addresses of their family.
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

/// Returns the host's links through which it reaches the pod over IPv4.
async fn links_to_pod(call: &Call<'_>, result: &CniResult) -> Result<Vec<String>> {
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
