use berth_proto::v1::{
    ContainerConfig, DnsConfig, KeyValue, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
    PodSandboxConfig, PodSandboxMetadata,
};
use proptest::prelude::*;

use super::text::hostname;
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
        (pod(&config).map_err(|error| error.field), super::container(&container).map_err(|error| error.field))
    };
    let both =
        |field: &str| (Err(format!("namespace_options.{field}")), Err(format!("namespace_options.{field}")));
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
