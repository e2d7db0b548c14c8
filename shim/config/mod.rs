//! The configuration: one main file, drop-ins beside it, flags on top; every key is optional.
//!
//! * [`value`]: the types of values that have rules of their own
//! * [`layer`]: one file or the flags, every key of it optional
//! * [`keys`]: what keys there are, with a sentence each
//! * [`problem`]: where a file is wrong, with line, key and the nearest known key
//! * [`load`]: which files are read, in which order, and what a broken one does
//! * this file: what comes out

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

/// Where the main file is, unless `--config` says otherwise.
pub const DEFAULT_FILE: &str = "/etc/berth/config.toml";

/// The settings of one daemon.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Config {
    /// The socket that clients connect to.
    pub socket: PathBuf,
    /// Persistent state: images, containers, addresses.
    pub root: PathBuf,
    /// Volatile state: keepers and their sockets. Gone after a reboot.
    pub state: PathBuf,
    /// Where CNI configuration is looked for.
    pub cni_conf_dir: PathBuf,
    /// Where CNI plugins are looked for that berth has not built in.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// Where taken addresses are noted.
    pub cni_data_dir: PathBuf,
    /// What is written to `cni_conf_dir` when the kubelet names the pods' subnets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cni_conf_template: Option<PathBuf>,
    /// Types of plugins that are built in and yet run from `cni_bin_dirs`.
    pub cni_external_plugins: Vec<String>,
    /// How many seconds a plugin from `cni_bin_dirs` may take.
    pub cni_plugin_timeout: u64,
    /// Where vendors say what their devices need (Container Device Interface); a later folder wins.
    pub cdi_spec_dirs: Vec<PathBuf>,
    /// Where registries' `hosts.toml` are looked for; the first folder that has one for a registry wins.
    #[serde(rename = "certs_dir")]
    pub certs_dirs: Vec<PathBuf>,
    /// Mirrors and short names of registries (containers-registries.conf(5)).
    pub registries_conf: PathBuf,
    /// Credentials for registries, for requests that bring none; the first file that has any for a registry wins.
    #[serde(rename = "auth_file")]
    pub auth_files: Vec<PathBuf>,
    /// Which images may come in (containers-policy.json(5)).
    pub signature_policy: PathBuf,
    /// Where archives and layouts are imported from; none means the folder `import` of `root`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub import_dir: Option<PathBuf>,
    /// Images that the kubelet is told not to collect.
    pub pinned_images: Vec<String>,
    /// How many layers are downloaded at once, beside one of each pull and those that are slow.
    pub parallel_pulls: usize,
    /// The largest image that is pulled or loaded, unpacked.
    pub max_image_size: ByteSize,
    /// The most files, folders and links of an image.
    pub max_image_files: u64,
    /// The most folders in one another.
    pub max_image_depth: usize,
    /// The most bytes that one byte of a layer may become, beyond the first 4 GiB.
    pub max_compression_ratio: u64,
    /// Where exec, attach and port-forward sessions connect to; port 0 picks a free one.
    pub stream_address: SocketAddr,
    /// The certificate of these sessions; none means plain HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream_certificate: Option<PathBuf>,
    /// Its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream_key: Option<PathBuf>,
    /// Where metrics are served; none means not at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_address: Option<SocketAddr>,
    /// What is logged: a level, or levels by module.
    pub log_level: String,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Who makes pods' parent cgroups; the kubelet asks for it.
    pub cgroup_driver: CgroupDriver,
    /// Give containers no lower `oom_score_adj` than the daemon's own, instead of failing where the kernel refuses.
    pub restrict_oom_score_adj: bool,
    /// Resource limits of every container, as `name=soft:hard`.
    pub default_ulimits: Vec<String>,
    /// Bytes of a pod's /dev/shm.
    pub shm_size: ByteSize,
    /// A device belongs to the user and group that its container asks to run as.
    pub device_ownership_from_security_context: bool,
    /// The names of RuntimeClass handlers that pods may ask for, besides none.
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
    /// The ranges of pods' addresses, at most one of each family.
    pub subnets: Vec<IpNet>,
    /// The MTU of pods' interfaces; none means that of the bridge.
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
            certs_dirs: [
                "/etc/berth/certs.d",
                "/etc/containerd/certs.d",
                "/etc/containers/certs.d",
                "/etc/docker/certs.d",
            ]
            .map(PathBuf::from)
            .to_vec(),
            registries_conf: "/etc/containers/registries.conf".into(),
            // The second is where podman's and skopeo's login of root keeps them (containers-auth.json(5)).
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
            // As containerd and CRI-O have it.
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
        // docker takes 172.17-31, podman 10.88, CRI-O 10.85, kubeadm's guides 10.244 and 10.96.
        let subnet = std::net::Ipv4Addr::new(10, 83, 0, 0);
        let subnets = ipnet::Ipv4Net::new(subnet, 16).map(IpNet::V4).into_iter().collect();
        Self { bridge: "berth0".to_owned(), subnets, mtu: None }
    }
}

impl Config {
    /// Overrides what the layer sets.
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

    /// The driver in use, where the setting leaves it to the host: systemd's where systemd runs the host on cgroup v2,
    /// as the kubelet and kubeadm expect there.
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

    /// As TOML that [`load`] reads again.
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

/// The defaults as a file with a comment for each key.
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
        let mut known: Vec<_> =
            keys::KEYS.iter().map(|key| (key.table.to_owned(), key.name.to_owned())).collect();
        settings.sort();
        known.sort();
        assert_eq!(settings, known);
        let text = config.to_toml().unwrap();
        let mut again = Config::default();
        again.apply(problem::read(&text).unwrap());
        assert_eq!(again, config);
    }

    #[test]
    fn what_a_layer_sets_overrides_and_nothing_else() {
        let mut config = Config::default();
        config.apply(problem::read("parallel_pulls = 9\n[network]\nmtu = 1400\n").unwrap());
        let mut wanted = Config { parallel_pulls: 9, ..Config::default() };
        wanted.network.mtu = Some(1400);
        assert_eq!(config, wanted);
    }
}
