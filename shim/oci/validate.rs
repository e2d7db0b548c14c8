//! Checks a request before anything is done for it. Names and values become parts of file names, of resolv.conf and of
//! sysctls: values with a special meaning there are refused, with an error that names the field.

use std::net::IpAddr;

use berth_image::ImageConfig;
use berth_proto::v1::{ContainerConfig, Mount, NamespaceMode, NamespaceOption, PodSandboxConfig};

use super::namespaces::pod_modes;
use super::{Result, error};

/// The longest name, label or annotation key in bytes.
const NAME: usize = 1024;

/// The longest text in bytes.
const TEXT: usize = 1 << 20;

/// The longest hostname in bytes (gethostname(2), HOST_NAME_MAX).
const HOSTNAME: usize = 64;

/// The longest path in bytes (PATH_MAX).
const PATH: usize = 4096;

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
    super::pause::user(config)?;
    let options = pod_modes(config);
    modes(&options, false)?;
    super::userns::requested(&options).map(drop)
}

/// Checks namespace modes. The network and IPC namespaces are the pod's or the host's (CRI `NamespaceOption`); only a
/// container can join the PID namespace of another one.
fn modes(options: &NamespaceOption, of_container: bool) -> Result<()> {
    for (field, mode) in [("network", options.network), ("ipc", options.ipc)] {
        let field = format!("namespace_options.{field}");
        match NamespaceMode::try_from(mode) {
            Ok(NamespaceMode::Pod | NamespaceMode::Node) => {}
            Ok(mode) => {
                return Err(error(
                    field,
                    format!("{} is not supported; POD and NODE are", mode.as_str_name()),
                ));
            }
            Err(_) => return Err(error(field, format!("{mode} is not a mode"))),
        }
    }
    let field = "namespace_options.pid";
    match NamespaceMode::try_from(options.pid) {
        Ok(NamespaceMode::Target) if !of_container => {
            Err(error(field, "TARGET is only valid for containers"))
        }
        Ok(NamespaceMode::Target) if options.target_id.is_empty() => {
            Err(error("namespace_options.target_id", "is empty, and pid is TARGET"))
        }
        Ok(_) => Ok(()),
        Err(_) => Err(error(field, format!("{} is not a mode", options.pid))),
    }
}

/// Checks a container's config.
///
/// # Errors
/// The first invalid field.
pub fn container(config: &ContainerConfig) -> Result<()> {
    let metadata = config.metadata.as_ref().ok_or_else(|| error("config.metadata", "is missing"))?;
    required("metadata.name", &metadata.name)?;
    let image = config.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
    required("image.image", image)?;
    maps(&config.labels, &config.annotations)?;
    log_path(&config.log_path)?;
    path_text("working_dir", &config.working_dir)?;
    for (field, values) in [("command", &config.command), ("args", &config.args)] {
        for value in values {
            text(field, value, TEXT)?;
        }
    }
    for variable in &config.envs {
        let field = format!("envs[{}]", variable.key);
        if variable.key.is_empty() || variable.key.contains(['=', '\0']) {
            return Err(error(field, "is not a variable name"));
        }
        let value = std::str::from_utf8(&variable.value).map_err(|_| error(&field, "is not UTF-8"))?;
        text(&field, value, TEXT)?;
    }
    if config.windows.is_some() {
        return Err(error("windows", "is not supported on Linux"));
    }
    let security = super::security(config);
    security.namespace_options.as_ref().map_or(Ok(()), |options| modes(options, true))?;
    // The ids of the request are checked independently of the image.
    super::user_request(config, &ImageConfig::default())?;
    config.mounts.iter().try_for_each(mount)?;
    for device in &config.devices {
        absolute("devices.host_path", &device.host_path)?;
        absolute("devices.container_path", &device.container_path)?;
    }
    Ok(())
}

fn text(field: &str, value: &str, longest: usize) -> Result<()> {
    if value.len() > longest {
        return Err(error(field, format!("has {} bytes, the limit is {longest}", value.len())));
    }
    if value.contains('\0') {
        return Err(error(field, "contains a NUL byte"));
    }
    Ok(())
}

/// Checks a text that becomes part of a file of lines or of a name: it has no control characters.
fn plain(field: &str, value: &str, longest: usize) -> Result<()> {
    text(field, value, longest)?;
    if value.chars().any(char::is_control) {
        return Err(error(field, format!("{value:?} contains control characters")));
    }
    Ok(())
}

fn required(field: &str, value: &str) -> Result<()> {
    if value.is_empty() {
        return Err(error(field, "is empty"));
    }
    plain(field, value, NAME)
}

/// Checks a name that becomes a value in the arguments of CNI plugins, `KEY=value;KEY=value` (CNI specification,
/// `CNI_ARGS`): a semicolon in it would start another argument, such as `IP`.
fn argument(field: &str, value: &str) -> Result<()> {
    required(field, value)?;
    if value.contains(';') {
        return Err(error(field, format!("{value:?} contains a semicolon")));
    }
    Ok(())
}

fn path_text(field: &str, value: &str) -> Result<()> {
    text(field, value, PATH)
}

fn absolute(field: &str, value: &str) -> Result<()> {
    path_text(field, value)?;
    if !value.starts_with('/') {
        return Err(error(field, format!("{value:?} is not an absolute path")));
    }
    Ok(())
}

fn absolute_or_empty(field: &str, value: &str) -> Result<()> {
    if value.is_empty() { Ok(()) } else { absolute(field, value) }
}

/// Checks that a log path is relative and stays in the pod's log folder (CRI `ContainerConfig.log_path`).
fn log_path(value: &str) -> Result<()> {
    path_text("log_path", value)?;
    if value.starts_with('/') || value.split('/').any(|part| part == "..") || value.ends_with('/') {
        return Err(error("log_path", format!("{value:?} is not a path below the pod's log folder")));
    }
    Ok(())
}

fn hostname(value: &str) -> Result<()> {
    plain("hostname", value, HOSTNAME)?;
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if !value.chars().all(is_allowed) {
        return Err(error("hostname", format!("{value:?} is not a hostname")));
    }
    Ok(())
}

type Map = std::collections::HashMap<String, String>;

fn maps(labels: &Map, annotations: &Map) -> Result<()> {
    map("labels", labels)?;
    self::annotations(annotations)
}

/// Checks annotations: data of the client in any form, with limited length.
///
/// # Errors
/// The first invalid annotation.
pub fn annotations(annotations: &Map) -> Result<()> {
    map("annotations", annotations)
}

/// Checks the runtime handler in `field` of a request; an empty name is the default.
///
/// # Errors
/// No runtime handler has that name.
pub fn runtime_handler(handlers: &[String], field: &str, handler: &str) -> Result<()> {
    if handler.is_empty() || handlers.iter().any(|known| known == handler) {
        return Ok(());
    }
    Err(error(field, format!("no runtime handler {handler:?} is configured")))
}

fn map(field: &str, map: &Map) -> Result<()> {
    for (key, value) in map {
        text(field, key, NAME)?;
        text(&format!("{field}[{key}]"), value, TEXT)?;
    }
    Ok(())
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

fn mount(mount: &Mount) -> Result<()> {
    let field = format!("mounts[{}]", mount.container_path);
    absolute("mounts.container_path", &mount.container_path)?;
    if super::normal(&mount.container_path) == "/" {
        return Err(error(field, "is the root of the container"));
    }
    if mount.image.as_ref().is_some_and(|image| !image.image.is_empty()) {
        return Ok(());
    }
    absolute(&format!("{field}.host_path"), &mount.host_path)
}

#[cfg(test)]
mod tests {
    use berth_proto::v1::{
        DnsConfig, KeyValue, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, PodSandboxMetadata,
    };
    use proptest::prelude::*;

    use super::*;

    fn pod_config() -> PodSandboxConfig {
        let metadata = PodSandboxMetadata {
            name: "name".to_owned(),
            uid: "uid".to_owned(),
            namespace: "ns".to_owned(),
            attempt: 0,
        };
        PodSandboxConfig { metadata: Some(metadata), ..PodSandboxConfig::default() }
    }

    fn with_sysctl(key: &str, value: &str, network: NamespaceMode) -> PodSandboxConfig {
        let mut config = pod_config();
        let options = berth_proto::v1::NamespaceOption { network: network.into(), ..Default::default() };
        config.linux = Some(LinuxPodSandboxConfig {
            sysctls: [(key.to_owned(), value.to_owned())].into(),
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(options),
                ..Default::default()
            }),
            ..Default::default()
        });
        config
    }

    #[test]
    fn only_sysctls_of_the_pods_namespaces_are_allowed() {
        let own = NamespaceMode::Pod;
        assert!(pod(&with_sysctl("net.ipv4.ip_forward", "1", own)).is_ok());
        assert!(pod(&with_sysctl("kernel.shm_rmid_forced", "1", own)).is_ok());
        assert!(pod(&with_sysctl("kernel/domainname", "example", own)).is_ok());
        for hosts in ["net.ipv4.ip_forward", "kernel.domainname"] {
            assert!(pod(&with_sysctl(hosts, "1", NamespaceMode::Node)).is_err(), "{hosts}");
        }
        for (key, value) in [
            ("kernel.core_pattern", "|/x"),
            ("kernel.shm_rmid_forced", "1\nkernel.core_pattern=|/x"),
            ("net..x", "1"),
            ("net.ipv4+kernel.core_pattern", "1"),
            ("", "1"),
        ] {
            assert!(pod(&with_sysctl(key, value, own)).is_err(), "{key} {value}");
        }
    }

    #[test]
    fn fields_are_named() {
        assert_eq!(pod(&PodSandboxConfig::default()).unwrap_err().field, "config.metadata");
        let mut config = pod_config();
        config.dns_config =
            Some(DnsConfig { servers: vec!["1.1.1.1\noptions x".to_owned()], ..DnsConfig::default() });
        assert_eq!(pod(&config).unwrap_err().field, "dns_config.servers");
        let mut config = pod_config();
        config.hostname = "a b".to_owned();
        assert_eq!(pod(&config).unwrap_err().field, "hostname");
    }

    #[test]
    fn invalid_namespace_modes_are_refused() {
        let with = |change: fn(&mut NamespaceOption)| {
            let mut options = NamespaceOption::default();
            change(&mut options);
            let mut config = pod_config();
            config.linux.get_or_insert_default().security_context.get_or_insert_default().namespace_options =
                Some(options.clone());
            let mut container = container_config();
            let linux = container.linux.get_or_insert_default();
            linux.security_context.get_or_insert_default().namespace_options = Some(options);
            (
                pod(&config).map_err(|error| error.field),
                super::container(&container).map_err(|error| error.field),
            )
        };
        let both = |field: &str| {
            (Err(format!("namespace_options.{field}")), Err(format!("namespace_options.{field}")))
        };
        let (container, target) = (i32::from(NamespaceMode::Container), i32::from(NamespaceMode::Target));
        assert_eq!((container, target), (1, 3));
        assert_eq!(with(|options| options.network = 1), both("network"));
        assert_eq!(with(|options| options.network = 3), both("network"));
        assert_eq!(with(|options| options.ipc = 1), both("ipc"));
        assert_eq!(with(|options| options.pid = 9), both("pid"));
        assert_eq!(with(|options| options.pid = 1), (Ok(()), Ok(())));
        let (of_pod, of_container) = with(|options| options.pid = 3);
        assert_eq!(of_pod, Err("namespace_options.pid".to_owned()));
        assert_eq!(of_container, Err("namespace_options.target_id".to_owned()));
    }

    #[test]
    fn fields_of_other_systems_are_refused() {
        let windows = PodSandboxConfig { windows: Some(Default::default()), ..pod_config() };
        assert_eq!(pod(&windows).unwrap_err().field, "windows");
        let windows = ContainerConfig { windows: Some(Default::default()), ..container_config() };
        assert_eq!(super::container(&windows).unwrap_err().field, "windows");
    }

    fn container_config() -> ContainerConfig {
        ContainerConfig {
            metadata: Some(berth_proto::v1::ContainerMetadata { name: "c".to_owned(), attempt: 0 }),
            image: Some(berth_proto::v1::ImageSpec { image: "busybox".to_owned(), ..Default::default() }),
            ..ContainerConfig::default()
        }
    }

    #[test]
    fn logs_stay_in_their_folder() {
        for (path, ok) in [("c/0.log", true), ("", true), ("../x", false), ("/etc/x", false), ("a/", false)] {
            let config = ContainerConfig { log_path: path.to_owned(), ..container_config() };
            assert_eq!(container(&config).is_ok(), ok, "{path}");
        }
    }

    #[test]
    fn values_that_are_not_utf8_are_refused() {
        let value = vec![0xff, 0xfe];
        let envs = vec![KeyValue { key: "BINARY".to_owned(), value }];
        let config = ContainerConfig { envs, ..container_config() };
        assert_eq!(container(&config).unwrap_err().field, "envs[BINARY]");
    }

    proptest! {
        #[test]
        fn no_accepted_hostname_breaks_a_line(name in "\\PC{0,80}|[\\n\\r\\t a-z]{0,10}") {
            if hostname(&name).is_ok() {
                prop_assert!(name.len() <= 64 && !name.contains(char::is_whitespace));
            }
        }
    }
}
