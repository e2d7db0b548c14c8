//! The configuration keys. Each is declared once: its type, default, description, example and flag. `berth config default`,
//! `berth config keys`, the help of the flags and docs/configuration.md show the declarations.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

use super::BrokenDropIn;
use super::declare::settings;
use super::handlers::{self, HandlerConfig, HandlersConfig, HandlersFlags, HandlersLayer};
use super::metrics_address::MetricsAddress;
use super::value::{
    AbsolutePath, AtLeastOne, BridgeName, ByteSize, CgroupDriver, Depth, Described, HandlerNames, LogFilter,
    LogFormat, Mtu, Name, Names, Parallel, PathList, PluginNames, References, SocketPath, Subnets, Ulimits,
};

pub use super::declare::ConfigKey;

settings! {
    "", "The settings of one daemon.", Config, Layer, Flags;
    keys {
        socket: SocketPath => PathBuf = path("/run/berth/berth.sock"),
            "Socket for the kubelet and crictl.", flag "PATH";
        root: AbsolutePath => PathBuf = path("/var/lib/berth"),
            "Folder for persistent state: images, containers, addresses.", flag "FOLDER";
        state: AbsolutePath => PathBuf = path("/run/berth"),
            "Folder for volatile state: the pods' keepers and their sockets.", flag "FOLDER";
        cni_conf_dir: AbsolutePath => PathBuf = path("/etc/cni/net.d"),
            "Folder of CNI configuration files; if it has none, pods get the built-in network.", flag "FOLDER";
        cni_bin_dirs: PathList => Vec<PathBuf> = paths(&["/opt/cni/bin"]),
            "Folders of CNI plugins that are not built in.";
        cni_data_dir: AbsolutePath => PathBuf = path("/var/lib/cni/networks"),
            "Folder of allocated addresses, in the format of the plugin host-local; its allocations stay valid.";
        cni_conf_template: AbsolutePath => Option<PathBuf> = None,
            "Template of the file that is written to cni_conf_dir when the kubelet sets the pod subnets, in the format of \
             containerd's conf_template.", example "\"/etc/berth/cni.conflist.tmpl\"";
        cni_external_plugins: PluginNames => Vec<String> = Vec::new(),
            "Types of built-in plugins that are run from cni_bin_dirs instead.";
        cni_plugin_timeout: AtLeastOne => u64 = 90,
            "Time limit in seconds for a call of a plugin from cni_bin_dirs.";
        cdi_spec_dirs: PathList => Vec<PathBuf> = paths(&["/etc/cdi", "/var/run/cdi"]),
            "Folders of vendors' CDI files; a later folder takes precedence.";
        hooks_dirs: PathList => Vec<PathBuf> = paths(&["/usr/share/containers/oci/hooks.d", "/etc/containers/oci/hooks.d"]),
            "Folders of OCI hooks (oci-hooks(5)); a file of a later folder takes precedence.";
        certs_dir: PathList => Vec<PathBuf> = paths(&[
                "/etc/berth/certs.d",
                "/etc/containerd/certs.d",
                "/etc/containers/certs.d",
                "/etc/docker/certs.d",
            ]),
            "Folders of <registry>/hosts.toml or certificates, one or several; the first folder that has any is used.";
        registries_conf: AbsolutePath => PathBuf = path("/etc/containers/registries.conf"),
            "Mirrors and short names in the format of podman and CRI-O, for registries without a hosts.toml.";
        // The second is the login file of podman and skopeo for root (containers-auth.json(5)).
        auth_file: PathList => Vec<PathBuf> = paths(&["/etc/berth/auth.json", "/run/containers/0/auth.json"]),
            "Credentials for registries in the format of docker's config.json, for requests without any: one file or \
             several.",
            note "keys of the file are registries or repositories (`quay.io/team`), and the longest match applies; \
                  `credHelpers` and `credsStore` work";
        signature_policy: AbsolutePath => PathBuf = path("/etc/containers/policy.json"),
            "Policy for accepted images (containers-policy.json); without the file, all.";
        import_dir: AbsolutePath => Option<PathBuf> = None,
            "Folder from which archives and layouts are imported as they appear; the default is <root>/import.",
            example "\"/var/lib/berth/import\"";
        pinned_images: References => Vec<String> = Vec::new(),
            "References of images that the kubelet's garbage collection must keep.";
        parallel_pulls: Parallel => usize = 4,
            "Number of layers that are downloaded in parallel, in addition to one per pull and to slow transfers.";
        max_image_size: ByteSize => ByteSize = ByteSize::gib(64),
            "Largest unpacked size of an image that is pulled or loaded.";
        max_image_files: AtLeastOne => u64 = 10_000_000,
            "Largest number of files, folders and links in an image.";
        max_image_depth: Depth => usize = 256,
            "Deepest nesting of folders in an image.";
        max_compression_ratio: AtLeastOne => u64 = 1100,
            "Largest ratio of unpacked to compressed bytes of a layer, beyond the first 4 GiB.";
        stream_address: SocketAddr => SocketAddr = SocketAddr::from(([127, 0, 0, 1], 0)),
            "Address for exec, attach and port-forward sessions; port 0 selects a free port.", flag "ADDRESS:PORT",
            note "the kubelet connects from this node; an address other than loopback needs TLS or other protection";
        stream_certificate: AbsolutePath => Option<PathBuf> = None,
            "Certificate for these sessions, followed by its chain, in PEM; without it they use plain HTTP.",
            example "\"/etc/berth/stream.crt\"",
            note "needs `stream_key`; both are read when the daemon starts";
        stream_key: AbsolutePath => Option<PathBuf> = None,
            "Key of that certificate, in PEM.", example "\"/etc/berth/stream.key\"",
            note "needs `stream_certificate`";
        metrics_address: MetricsAddress => Option<MetricsAddress> = None,
            "Address for metrics in the format of Prometheus, or unix:///PATH; without it, metrics are not served.",
            example "\"127.0.0.1:9470\"", flag "ADDRESS";
        log_level: LogFilter => String = "info".to_owned(),
            "Log level: off, error, warn, info, debug or trace; or by module: \"info,berth_image=debug\".", flag "LEVEL";
        log_format: LogFormat => LogFormat = LogFormat::Auto,
            "Log format: text, json, journald (entries with fields), or auto: journald if it receives standard error, else text.",
            flag "FORMAT";
        cgroup_driver: CgroupDriver => CgroupDriver = CgroupDriver::Auto,
            "Cgroup driver: auto, systemd or cgroupfs; the kubelet uses the same.", flag "DRIVER",
            note "`auto` is `systemd` if systemd runs the host on cgroup v2, otherwise `cgroupfs`";
        restrict_oom_score_adj: bool => bool = false,
            "Raise the oom_score_adj of containers to the daemon's if it is lower, instead of failing.";
        default_ulimits: Ulimits => Vec<String> = Vec::new(),
            "Resource limits of every container: \"nofile=1024:524288\" sets soft and hard, \"core=0\" sets both.",
            note "other limits are those that the kernel gives to its first process, never those of the daemon; exceptions: \
                  `nofile` is 1048576, `nproc` is unlimited";
        // The default of containerd and CRI-O.
        shm_size: ByteSize => ByteSize = ByteSize::mib(64),
            "Size of a pod's /dev/shm.";
        device_ownership_from_security_context: bool => bool = false,
            "Give devices to the user and group of their container's security context.";
        criu_path: AbsolutePath => Option<PathBuf> = None,
            "Program CRIU, which checkpoints containers; the default is criu in a folder of PATH.",
            example "\"/usr/sbin/criu\"";
        runtime_handlers: HandlerNames => Vec<String> = vec!["berth".to_owned()],
            "RuntimeClass handlers that pods may name; pods without a handler always run.",
            note "those of the tables `[handlers.NAME]` need not be listed; all others are berth's own runtime";
    }
    tables {
        handlers: HandlersConfig, HandlersLayer, HandlersFlags,
            "OCI runtimes that run the containers of pods with a RuntimeClass handler, one table for each handler.";
        network: NetworkConfig, NetworkLayer, NetworkFlags,
            "Network of pods when cni_conf_dir has no configuration.";
        nri: NriConfig, NriLayer, NriFlags,
            "Node Resource Interface (NRI): plugins that change containers.";
        nri_validator: NriValidatorConfig, NriValidatorLayer, NriValidatorFlags,
            "Changes that NRI plugins must not make, and plugins that must be connected.";
    }
    also {
        /// The drop-ins that were skipped, and why.
        #[serde(skip)]
        broken_drop_ins: Vec<BrokenDropIn>;
    }
}

settings! {
    "network", "The network that pods get when `cni_conf_dir` has no configuration.",
    NetworkConfig, NetworkLayer, NetworkFlags;
    keys {
        bridge: BridgeName => String = "berth0".to_owned(),
            "Bridge of the built-in network.";
        // docker uses 172.17-31, podman 10.88, CRI-O 10.85, the guides of kubeadm 10.244 and 10.96.
        subnets: Subnets => Vec<IpNet> = vec![IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 83, 0, 0), 16))],
            "Address ranges of its pods, at most one per address family.";
        mtu: Mtu => Option<u32> = None,
            "MTU of its pods' interfaces; the default is the bridge's.", example "1450";
    }
    tables {}
    also {}
}

settings! {
    "nri", "The Node Resource Interface (NRI): plugins that are called at the events of pods and containers.",
    NriConfig, NriLayer, NriFlags;
    keys {
        enable: bool => bool = true,
            "Accept and start NRI plugins.";
        socket_path: SocketPath => PathBuf = path("/var/run/nri/nri.sock"),
            "Socket to which plugins connect; if it cannot be created, only the plugins of plugin_path run.";
        plugin_path: AbsolutePath => PathBuf = path("/opt/nri/plugins"),
            "Folder of plugins that the daemon starts, as NN-NAME.";
        plugin_config_path: AbsolutePath => PathBuf = path("/etc/nri/conf.d"),
            "Folder of the configurations of these plugins: NN-NAME.conf or NAME.conf.";
        plugin_registration_timeout: AtLeastOne => u64 = 5,
            "Time limit in seconds for a plugin to register, and to handle all existing pods and containers.";
        plugin_request_timeout: AtLeastOne => u64 = 2,
            "Time limit in seconds for a plugin to answer a call; a plugin that does not answer is disconnected.";
        disable_connections: bool => bool = false,
            "Start the plugins of plugin_path only, and do not listen on socket_path.";
    }
    tables {}
    also {}
}

settings! {
    "nri_validator", "The default validator of NRI: changes that plugins must not make, and plugins that must be connected.",
    NriValidatorConfig, NriValidatorLayer, NriValidatorFlags;
    keys {
        enable: bool => bool = false,
            "Check the changes of NRI plugins.";
        reject_oci_hook_adjustment: bool => bool = false,
            "Reject containers to which a plugin adds OCI hooks.";
        reject_runtime_default_seccomp_adjustment: bool => bool = false,
            "Reject containers whose default seccomp profile a plugin changes.";
        reject_unconfined_seccomp_adjustment: bool => bool = false,
            "Reject containers without a seccomp profile to which a plugin adds one.";
        reject_custom_seccomp_adjustment: bool => bool = false,
            "Reject containers whose own seccomp profile a plugin changes.";
        reject_namespace_adjustment: bool => bool = false,
            "Reject containers whose namespaces a plugin changes.";
        reject_sysctl_adjustment: bool => bool = false,
            "Reject containers whose sysctls a plugin changes.";
        required_plugins: Names => Vec<String> = Vec::new(),
            "Plugins without which no container is created.",
            note "a pod requires further ones by the annotation `required-plugins.noderesource.dev`, a JSON list of names";
        tolerate_missing_plugins_annotation: Name => String = String::new(),
            "Annotation that, if \"true\", permits the containers of a pod without the required plugins.",
            note "empty: no annotation permits that";
    }
    tables {}
    also {}
}

fn path(text: &str) -> PathBuf {
    PathBuf::from(text)
}

fn paths(texts: &[&str]) -> Vec<PathBuf> {
    texts.iter().map(PathBuf::from).collect()
}

/// Returns the keys of a table; the name of the top level is empty.
#[must_use]
pub fn of_table(table: &str) -> Option<&'static [ConfigKey]> {
    match table {
        "" => Some(Layer::KEYS),
        handlers::TABLE_OF_ONE => Some(HandlersLayer::KEYS),
        name => Layer::TABLES.iter().find(|(table, ..)| *table == name).map(|(_, _, keys)| *keys),
    }
}

/// Returns the default value of a key, if it has one.
///
/// # Errors
/// A default is not valid TOML.
pub fn default_of(table: &str, name: &str) -> Result<Option<toml::Value>, toml::ser::Error> {
    let mut defaults = toml::Table::try_from(Config::default())?;
    let table = match table {
        "" => defaults,
        handlers::TABLE_OF_ONE => toml::Table::try_from(HandlerConfig::default())?,
        name => match defaults.remove(name) {
            Some(toml::Value::Table(inner)) => inner,
            _ => return Ok(None),
        },
    };
    Ok(table.get(name).cloned())
}

/// Returns the help text of a flag: the description of its key, with the default.
fn help(table: &str, name: &str, about: &str) -> String {
    let about = about.trim_end_matches('.');
    match default_of(table, name) {
        Ok(Some(toml::Value::String(text))) => format!("{about} [default: {text}]"),
        Ok(Some(value)) => format!("{about} [default: {value}]"),
        Ok(None) | Err(_) => about.to_owned(),
    }
}
