//! The runtime config of a pod for the network plugins: host ports, bandwidth limits, name servers, and annotations
//! that an operator may let pods use.

use berth_cni::{Bandwidth, DnsConfig, PortMappingEntry, Protocol, RuntimeConfig};
use berth_proto::v1::{PodSandboxConfig, PortMapping, Protocol as CriProtocol};

use crate::error::CriError;

/// Annotations with the bandwidth limits of a pod, as kubenet and users of the bandwidth plugin have them (Kubernetes,
/// "Network Plugins").
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";

/// Annotations with requested addresses, a hardware address and further names. They have an effect if the network's
/// configuration gives a plugin the capability of that name.
const IPS: &str = "berth.io/ips";
const MAC: &str = "berth.io/mac";
const ALIASES: &str = "berth.io/aliases";

/// Returns the runtime config of a pod.
///
/// # Errors
/// `InvalidArgument`: an annotation is invalid.
pub(crate) fn runtime_config(config: &PodSandboxConfig, cgroup: &str) -> Result<RuntimeConfig, CriError> {
    let annotation =
        |name: &str| config.annotations.get(name).map(String::as_str).filter(|text| !text.is_empty());
    let list = |name: &str| -> Vec<String> {
        let parts = annotation(name).into_iter().flat_map(|text| text.split(','));
        parts.map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
    };
    let dns = config.dns_config.as_ref().filter(|dns| !dns.servers.is_empty() || !dns.searches.is_empty());
    Ok(RuntimeConfig {
        port_mappings: config.port_mappings.iter().filter_map(port_mapping).collect(),
        bandwidth: bandwidth(annotation(INGRESS), annotation(EGRESS))?,
        ips: list(IPS),
        mac: annotation(MAC).map(str::to_owned),
        aliases: list(ALIASES),
        dns: dns.map(|dns| DnsConfig {
            servers: dns.servers.clone(),
            searches: dns.searches.clone(),
            options: dns.options.clone(),
        }),
        annotations: config.annotations.clone().into_iter().collect(),
        cgroup_path: Some(cgroup.to_owned()),
        ..RuntimeConfig::default()
    })
}

/// Converts a port mapping. One without a host port has no effect on the host (CRI `PortMapping.host_port`).
fn port_mapping(mapping: &PortMapping) -> Option<PortMappingEntry> {
    let host_port = u16::try_from(mapping.host_port).ok().filter(|port| *port != 0)?;
    let protocol = match mapping.protocol() {
        CriProtocol::Tcp => Protocol::Tcp,
        CriProtocol::Udp => Protocol::Udp,
        CriProtocol::Sctp => Protocol::Sctp,
    };
    Some(PortMappingEntry {
        protocol: protocol.name().to_owned(),
        container_port: u16::try_from(mapping.container_port).ok()?,
        host_port,
        host_ip: mapping.host_ip.clone(),
    })
}

fn bandwidth(ingress: Option<&str>, egress: Option<&str>) -> Result<Option<Bandwidth>, CriError> {
    let rate = |name: &str, text: Option<&str>| match text {
        Some(text) => bits(text).map_err(|why| CriError::invalid(format!("annotations[{name}]"), why)),
        None => Ok(0),
    };
    let (ingress_rate, egress_rate) = (rate(INGRESS, ingress)?, rate(EGRESS, egress)?);
    if ingress_rate == 0 && egress_rate == 0 {
        return Ok(None);
    }
    Ok(Some(Bandwidth {
        ingress_rate,
        ingress_burst: burst(ingress_rate),
        egress_rate,
        egress_burst: burst(egress_rate),
    }))
}

/// Returns the burst of a rate: 20 ms of the rate, and at least two of the largest packets that a network card takes
/// in one piece. This keeps the limit effective for short transfers.
fn burst(rate: u64) -> u64 {
    const LEAST: u64 = 2 * 8 * (64 << 10);
    const MOST: u64 = 8 << 30;
    if rate == 0 { 0 } else { (rate / 50).clamp(LEAST, MOST) }
}

/// Parses bits per second as a Kubernetes quantity: `10M`, `1.5Gi`, `1e6`.
fn bits(text: &str) -> Result<u64, String> {
    /// The kubelet's limits of these annotations.
    const LEAST: f64 = 1e3;
    const MOST: f64 = 1e15;
    let invalid = || format!("{text:?} is not a quantity");
    let units: [(&str, f64); 12] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("", 1.0),
    ];
    let found = units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)));
    let (number, factor) = found.ok_or_else(invalid)?;
    let plain = number.chars().all(|c| c.is_ascii_digit() || "+-.eE".contains(c)) && !number.is_empty();
    let value = number.parse::<f64>().ok().filter(|_| plain).ok_or_else(invalid)? * factor;
    if !(LEAST..=MOST).contains(&value) {
        return Err(format!("{text} is not between 1k and 1P"));
    }
    // Within these limits the rounded value is a whole number.
    format!("{value:.0}").parse().map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_of_kubernetes_are_bits() {
        for (text, expected) in [
            ("10M", 10_000_000),
            ("1Gi", 1 << 30),
            ("1.5k", 1500),
            ("1e6", 1_000_000),
            ("2500", 2500),
            ("5000000m", 5000),
        ] {
            assert_eq!(bits(text), Ok(expected), "{text}");
        }
        for text in ["", "M", "10Q", "-5M", "1 M", "10", "2P", "nan", "infM", "1e999"] {
            assert!(bits(text).is_err(), "{text}");
        }
    }

    #[test]
    fn annotations_and_ports_are_passed_on() {
        let annotations = [(INGRESS, "10M"), (IPS, "10.0.0.5, fd00::5"), (MAC, "02:00:00:00:00:01")];
        let config = PodSandboxConfig {
            annotations: annotations.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            port_mappings: vec![
                PortMapping { container_port: 80, host_port: 8080, protocol: 1, ..PortMapping::default() },
                PortMapping { container_port: 81, ..PortMapping::default() },
            ],
            ..PodSandboxConfig::default()
        };
        let runtime = runtime_config(&config, "/pods/x").unwrap();
        assert_eq!(runtime.bandwidth.unwrap().ingress_rate, 10_000_000);
        assert_eq!(runtime.bandwidth.unwrap().egress_rate, 0);
        assert_eq!(runtime.ips, ["10.0.0.5", "fd00::5"]);
        assert_eq!(runtime.port_mappings.len(), 1);
        assert_eq!(runtime.port_mappings[0].protocol, "udp");
        let wrong = PodSandboxConfig {
            annotations: [(EGRESS.to_owned(), "fast".to_owned())].into(),
            ..PodSandboxConfig::default()
        };
        assert!(super::runtime_config(&wrong, "").unwrap_err().to_string().contains(EGRESS));
    }
}
