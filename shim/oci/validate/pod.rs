//! The config of a pod.

use std::net::IpAddr;

use berth_proto::v1::{NamespaceMode, PodSandboxConfig};

use super::modes;
use super::text::{NAME, absolute_or_empty, argument, hostname, maps, path_text, plain};
use crate::oci::namespaces::pod_modes;
use crate::oci::{Result, error, pause, userns};

/// Checks a pod's config.
///
/// # Errors
/// The first invalid field.
pub fn pod(config: &PodSandboxConfig) -> Result<()> {
    let metadata = config.metadata.as_ref().ok_or_else(|| error("config.metadata", "is missing"))?;
    argument("metadata.name", &metadata.name)?;
    argument("metadata.uid", &metadata.uid)?;
    argument("metadata.namespace", &metadata.namespace)?;
    hostname(&config.hostname)?;
    maps(&config.labels, &config.annotations)?;
    absolute_or_empty("log_directory", &config.log_directory)?;
    dns(config)?;
    for mapping in &config.port_mappings {
        port("port_mappings.container_port", mapping.container_port)?;
        port("port_mappings.host_port", mapping.host_port)?;
        if !mapping.host_ip.is_empty() && mapping.host_ip.parse::<IpAddr>().is_err() {
            return Err(error("port_mappings.host_ip", format!("{:?} is not an address", mapping.host_ip)));
        }
    }
    if let Some(linux) = &config.linux {
        path_text("linux.cgroup_parent", &linux.cgroup_parent)?;
        for (key, value) in &linux.sysctls {
            sysctl(config, key, value)?;
        }
    }
    if config.windows.is_some() {
        return Err(error("windows", "is not supported on Linux"));
    }
    pause::user(config)?;
    let options = pod_modes(config);
    modes(&options, false)?;
    userns::requested(&options).map(drop)
}

/// Checks DNS settings: a value must not add lines to resolv.conf.
fn dns(config: &PodSandboxConfig) -> Result<()> {
    let Some(dns) = &config.dns_config else { return Ok(()) };
    for (field, values) in [
        ("dns_config.servers", &dns.servers),
        ("dns_config.searches", &dns.searches),
        ("dns_config.options", &dns.options),
    ] {
        for value in values {
            plain(field, value, NAME)?;
            if value.contains(char::is_whitespace) {
                return Err(error(field, format!("{value:?} contains white space")));
            }
        }
    }
    Ok(())
}

fn port(field: &str, value: i32) -> Result<()> {
    match u16::try_from(value) {
        Ok(_) => Ok(()),
        Err(_) => Err(error(field, format!("{value} is not a port"))),
    }
}

/// Checks a sysctl. Only sysctls of namespaces that the pod does not share are allowed: all others are the host's
/// (CVE-2022-0532). A key or value that could be read as another sysctl is refused (CVE-2022-0811).
fn sysctl(config: &PodSandboxConfig, key: &str, value: &str) -> Result<()> {
    let field = format!("linux.sysctls[{key}]");
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '/' | '_' | '-' | ':' | '@');
    if key.is_empty() || !key.chars().all(is_allowed) || key.split(['.', '/']).any(str::is_empty) {
        return Err(error(field, "is not a sysctl"));
    }
    if value.chars().any(|c| c.is_control() && c != '\t') {
        return Err(error(field, format!("{value:?} contains control characters")));
    }
    let modes = pod_modes(config);
    let dotted = key.replace('/', ".");
    let is = |names: &[&str]| names.iter().any(|name| dotted.starts_with(name));
    let (namespace, mode) = if is(&["net."]) {
        ("network", modes.network())
    } else if is(&["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."]) {
        ("IPC", modes.ipc())
    } else if dotted == "kernel.domainname" {
        // This also applies to a pod in the host's network with a separate hostname: its domain is the host's.
        ("UTS", modes.network())
    } else {
        return Err(error(field, "does not belong to a namespace of the pod"));
    };
    if mode == NamespaceMode::Node {
        return Err(error(field, format!("belongs to the host: the pod shares its {namespace} namespace")));
    }
    Ok(())
}
