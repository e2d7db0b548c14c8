//! The configuration: one main file, drop-ins beside it, and flags. Every key is optional.
//!
//! * [`value`]: types of values that check themselves
//! * [`layer`]: the settings of one file or of the flags
//! * [`keys`]: the list of keys with descriptions
//! * [`problem`]: mistakes in a file, with line, key and the nearest key
//! * [`mod@load`]: the order of the files, and the handling of broken ones
//! * this file: the resulting configuration

pub mod keys;
pub mod layer;
pub mod load;
pub mod problem;
pub mod value;

use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::Serialize;

pub use layer::Layer;
pub use load::{BrokenDropIn, ConfigError, load, mistakes};
pub use problem::Problem;
pub use value::{ByteSize, CgroupDriver, LogFormat};

use value::is_systemd_host;

/// The path of the main file, unless `--config` names another one.
pub const DEFAULT_FILE: &str = "/etc/berth/config.toml";

/// The settings of one daemon.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Config {
    /// Socket for the kubelet and crictl.
    pub socket: PathBuf,
    /// Folder for persistent state: images, containers, addresses.
    pub root: PathBuf,
    /// Folder for volatile state: keepers and their sockets. It is empty after a reboot.
    pub state: PathBuf,
    /// Folder of CNI configuration files.
    pub cni_conf_dir: PathBuf,
    /// Folders of CNI plugins that are not built in.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// Folder of allocated addresses.
    pub cni_data_dir: PathBuf,
    /// Template of the file that is written to `cni_conf_dir` when the kubelet sets the pod subnets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cni_conf_template: Option<PathBuf>,
    /// Types of built-in plugins that are run from `cni_bin_dirs` instead.
    pub cni_external_plugins: Vec<String>,
    /// Time limit in seconds for a call of a plugin from `cni_bin_dirs`.
    pub cni_plugin_timeout: u64,
    /// Folders of vendors' CDI files (Container Device Interface); a later folder takes precedence.
    pub cdi_spec_dirs: Vec<PathBuf>,
    /// Folders of OCI hooks (oci-hooks(5)); a file of a later folder takes precedence.
    pub hooks_dirs: Vec<PathBuf>,
    /// Folders of registries' `hosts.toml`; the first folder that has one for a registry is used.
    #[serde(rename = "certs_dir")]
    pub certs_dirs: Vec<PathBuf>,
    /// Mirrors and short names of registries (containers-registries.conf(5)).
    pub registries_conf: PathBuf,
    /// Credentials for registries, for requests without any; the first file that has some for a registry is used.
    #[serde(rename = "auth_file")]
    pub auth_files: Vec<PathBuf>,
    /// Policy for accepted images (containers-policy.json(5)).
    pub signature_policy: PathBuf,
    /// Folder from which archives and layouts are imported; none means the folder `import` of `root`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub import_dir: Option<PathBuf>,
    /// References of images that the kubelet's garbage collection must keep.
    pub pinned_images: Vec<String>,
    /// Number of layers that are downloaded in parallel, in addition to one per pull and to slow transfers.
    pub parallel_pulls: usize,
    /// Largest unpacked size of an image that is pulled or loaded.
    pub max_image_size: ByteSize,
    /// Largest number of files, folders and links in an image.
    pub max_image_files: u64,
    /// Deepest nesting of folders in an image.
    pub max_image_depth: usize,
    /// Largest ratio of unpacked to compressed bytes of a layer, beyond the first 4 GiB.
    pub max_compression_ratio: u64,
    /// Address for exec, attach and port-forward sessions; port 0 selects a free port.
    pub stream_address: SocketAddr,
    /// Certificate for these sessions; none means plain HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream_certificate: Option<PathBuf>,
    /// Key of that certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream_key: Option<PathBuf>,
    /// Address for metrics; none means that metrics are not served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_address: Option<SocketAddr>,
    /// Log level, or levels by module.
    pub log_level: String,
    /// Log format.
    pub log_format: LogFormat,
    /// Cgroup driver; the kubelet uses the same.
    pub cgroup_driver: CgroupDriver,
    /// Whether a lower `oom_score_adj` of a container is raised to the daemon's, instead of failing when the kernel
    /// refuses.
    pub restrict_oom_score_adj: bool,
    /// Resource limits of every container, as `name=soft:hard`.
    pub default_ulimits: Vec<String>,
    /// Size of a pod's /dev/shm in bytes.
    pub shm_size: ByteSize,
    /// Whether devices belong to the user and group of their container's security context.
    pub device_ownership_from_security_context: bool,
    /// RuntimeClass handlers that pods may name.
    pub runtime_handlers: Vec<String>,
    /// The built-in network.
    pub network: NetworkConfig,
    /// The drop-ins that were skipped, and why.
    #[serde(skip)]
    pub broken_drop_ins: Vec<BrokenDropIn>,
}

/// The network that pods get when `cni_conf_dir` has no configuration.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NetworkConfig {
    /// The bridge on the host.
    pub bridge: String,
    /// The address ranges of pods, at most one per address family.
    pub subnets: Vec<IpNet>,
    /// The MTU of pods' interfaces; none means the bridge's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            socket: "/run/berth/berth.sock".into(),
            root: "/var/lib/berth".into(),
            state: "/run/berth".into(),
            cni_conf_dir: "/etc/cni/net.d".into(),
            cni_bin_dirs: vec!["/opt/cni/bin".into()],
            cni_data_dir: "/var/lib/cni/networks".into(),
            cni_conf_template: None,
            cni_external_plugins: Vec::new(),
            cni_plugin_timeout: 90,
            cdi_spec_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
            hooks_dirs: vec![
                "/usr/share/containers/oci/hooks.d".into(),
                "/etc/containers/oci/hooks.d".into(),
            ],
            certs_dirs: [
                "/etc/berth/certs.d",
                "/etc/containerd/certs.d",
                "/etc/containers/certs.d",
                "/etc/docker/certs.d",
            ]
            .map(PathBuf::from)
            .to_vec(),
            registries_conf: "/etc/containers/registries.conf".into(),
            // The second is the login file of podman and skopeo for root (containers-auth.json(5)).
            auth_files: vec!["/etc/berth/auth.json".into(), "/run/containers/0/auth.json".into()],
            signature_policy: "/etc/containers/policy.json".into(),
            import_dir: None,
            pinned_images: Vec::new(),
            parallel_pulls: 4,
            max_image_size: ByteSize::gib(64),
            max_image_files: 10_000_000,
            max_image_depth: 256,
            max_compression_ratio: 1100,
            stream_address: SocketAddr::from(([127, 0, 0, 1], 0)),
            stream_certificate: None,
            stream_key: None,
            metrics_address: None,
            log_level: "info".to_owned(),
            log_format: LogFormat::Text,
            cgroup_driver: CgroupDriver::Auto,
            restrict_oom_score_adj: false,
            default_ulimits: Vec::new(),
            // The default of containerd and CRI-O.
            shm_size: ByteSize::mib(64),
            device_ownership_from_security_context: false,
            runtime_handlers: vec!["berth".to_owned()],
            network: NetworkConfig::default(),
            broken_drop_ins: Vec::new(),
        }
    }
}

impl Default for NetworkConfig {
    fn default() -> Self {
        // docker uses 172.17-31, podman 10.88, CRI-O 10.85, the guides of kubeadm 10.244 and 10.96.
        let subnet = std::net::Ipv4Addr::new(10, 83, 0, 0);
        let subnets = ipnet::Ipv4Net::new(subnet, 16).map(IpNet::V4).into_iter().collect();
        Self { bridge: "berth0".to_owned(), subnets, mtu: None }
    }
}

impl Config {
    /// Overrides the settings that the layer contains.
    pub fn apply(&mut self, layer: Layer) {
        set(&mut self.socket, layer.socket);
        set(&mut self.root, layer.root);
        set(&mut self.state, layer.state);
        set(&mut self.cni_conf_dir, layer.cni_conf_dir);
        set(&mut self.cni_bin_dirs, layer.cni_bin_dirs);
        set(&mut self.cni_data_dir, layer.cni_data_dir);
        if let Some(file) = layer.cni_conf_template {
            self.cni_conf_template = Some(file.into());
        }
        set(&mut self.cni_external_plugins, layer.cni_external_plugins);
        set(&mut self.cni_plugin_timeout, layer.cni_plugin_timeout);
        set(&mut self.cdi_spec_dirs, layer.cdi_spec_dirs);
        set(&mut self.hooks_dirs, layer.hooks_dirs);
        set(&mut self.certs_dirs, layer.certs_dir);
        set(&mut self.registries_conf, layer.registries_conf);
        set(&mut self.auth_files, layer.auth_file);
        set(&mut self.signature_policy, layer.signature_policy);
        if let Some(folder) = layer.import_dir {
            self.import_dir = Some(folder.into());
        }
        set(&mut self.pinned_images, layer.pinned_images);
        set(&mut self.parallel_pulls, layer.parallel_pulls);
        set(&mut self.max_image_size, layer.max_image_size);
        set(&mut self.max_image_files, layer.max_image_files);
        set(&mut self.max_image_depth, layer.max_image_depth);
        set(&mut self.max_compression_ratio, layer.max_compression_ratio);
        set(&mut self.stream_address, layer.stream_address);
        if let Some(file) = layer.stream_certificate {
            self.stream_certificate = Some(file.into());
        }
        if let Some(file) = layer.stream_key {
            self.stream_key = Some(file.into());
        }
        if let Some(address) = layer.metrics_address {
            self.metrics_address = Some(address);
        }
        set(&mut self.log_level, layer.log_level);
        set(&mut self.log_format, layer.log_format);
        set(&mut self.cgroup_driver, layer.cgroup_driver);
        set(&mut self.restrict_oom_score_adj, layer.restrict_oom_score_adj);
        set(&mut self.default_ulimits, layer.default_ulimits);
        set(&mut self.shm_size, layer.shm_size);
        set(&mut self.device_ownership_from_security_context, layer.device_ownership_from_security_context);
        set(&mut self.runtime_handlers, layer.runtime_handlers);
        set(&mut self.network.bridge, layer.network.bridge);
        set(&mut self.network.subnets, layer.network.subnets);
        if let Some(mtu) = layer.network.mtu {
            self.network.mtu = Some(mtu.into());
        }
    }

    /// Returns the cgroup driver in use. `auto` means systemd if systemd runs the host on cgroup v2, as the kubelet
    /// and kubeadm expect there.
    #[must_use]
    pub fn cgroup_driver(&self) -> berth_proto::v1::CgroupDriver {
        use berth_proto::v1::CgroupDriver as Driver;
        match self.cgroup_driver {
            CgroupDriver::Systemd => Driver::Systemd,
            CgroupDriver::Cgroupfs => Driver::Cgroupfs,
            CgroupDriver::Auto if is_systemd_host() => Driver::Systemd,
            CgroupDriver::Auto => Driver::Cgroupfs,
        }
    }

    /// Returns the configuration as TOML that [`load()`] can read.
    ///
    /// # Errors
    /// A path is not UTF-8.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }
}

fn set<T, V: Into<T>>(field: &mut T, value: Option<V>) {
    if let Some(value) = value {
        *field = value.into();
    }
}

/// Returns the default configuration as a file with a comment for each key.
///
/// # Errors
/// As [`Config::to_toml`].
pub fn commented_default() -> Result<String, toml::ser::Error> {
    let defaults = toml::Table::try_from(Config::default())?;
    let mut text =
        String::from("# The settings of berth. Each line shows the default; see docs/configuration.md.\n");
    for key in keys::KEYS.iter().filter(|key| !keys::KEYS.iter().any(|inner| inner.table == key.name)) {
        let table = match key.table {
            "" => Some(&defaults),
            name => defaults.get(name).and_then(toml::Value::as_table),
        };
        if !key.table.is_empty() && !text.contains(&format!("\n[{}]\n", key.table)) {
            let about = keys::KEYS.iter().find(|k| k.name == key.table).map_or("", |k| k.about);
            text += &format!("\n# {about}\n[{}]\n", key.table);
        }
        text += &format!("\n# {}\n", key.about);
        text += &match (table.and_then(|table| table.get(key.name)), key.example) {
            (Some(value), _) => format!("{} = {value}\n", key.name),
            (None, Some(example)) => format!("# {} = {example}\n", key.name),
            (None, None) => String::new(),
        };
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_as_a_file_are_the_defaults() {
        let mut config = Config::default();
        config.network.bridge = "other".to_owned();
        config.apply(problem::read(&commented_default().unwrap()).unwrap());
        assert_eq!(config, Config::default());
    }

    #[test]
    fn every_setting_has_its_key_and_every_key_its_setting() {
        let mut config = Config {
            metrics_address: Some(([127, 0, 0, 1], 1).into()),
            import_dir: Some("/import".into()),
            cni_conf_template: Some("/template".into()),
            stream_certificate: Some("/tls/certificate".into()),
            stream_key: Some("/tls/key".into()),
            ..Config::default()
        };
        config.network.mtu = Some(1500);
        let table = toml::Table::try_from(&config).unwrap();
        let mut settings: Vec<_> = table.keys().map(|name| (String::new(), name.clone())).collect();
        for (name, value) in &table {
            let inner = value.as_table().into_iter().flat_map(toml::Table::keys);
            settings.extend(inner.map(|key| (name.clone(), key.clone())));
        }
        let mut keys_with_tables: Vec<_> =
            keys::KEYS.iter().map(|key| (key.table.to_owned(), key.name.to_owned())).collect();
        settings.sort();
        keys_with_tables.sort();
        assert_eq!(settings, keys_with_tables);
        let text = config.to_toml().unwrap();
        let mut again = Config::default();
        again.apply(problem::read(&text).unwrap());
        assert_eq!(again, config);
    }

    #[test]
    fn a_layer_overrides_only_its_own_settings() {
        let mut config = Config::default();
        config.apply(problem::read("parallel_pulls = 9\n[network]\nmtu = 1400\n").unwrap());
        let mut expected = Config { parallel_pulls: 9, ..Config::default() };
        expected.network.mtu = Some(1400);
        assert_eq!(config, expected);
    }
}
