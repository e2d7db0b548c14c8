//! The configuration: one main file, drop-ins beside it, and flags. Every key is optional.
//!
//! * [`keys`]: the declaration of each key; the settings, the flags and the documents follow from it
//! * [`declare`]: the macro for these declarations
//! * [`value`]: types of values that check themselves
//! * [`handlers`]: the tables of OCI runtimes, by the names of their handlers
//! * [`document`]: the keys as documents
//! * [`nearest`]: the suggestion for an unknown key
//! * [`problem`]: mistakes in a file, with line and key
//! * [`mod@load`]: the order of the files, and the handling of broken ones
//! * this file: what follows from several settings or from the host
//! * [`mod@load`]: reads the main file, then `conf.d/*.toml` beside it in the order of their names, then the flags
//! * [`metrics_address`]: the address of the metrics

pub mod declare;
pub mod document;
pub mod handlers;
pub mod keys;
pub mod load;
pub mod metrics_address;
pub mod nearest;
pub mod problem;
pub mod value;

use std::path::PathBuf;

pub use handlers::{HandlerConfig, HandlersConfig};
pub use keys::{Config, Flags, Layer, NetworkConfig, NriConfig, NriValidatorConfig};
pub use load::{ConfigError, load, mistakes};
pub use metrics_address::MetricsAddress;
pub use problem::Problem;
pub use value::{ByteSize, CgroupDriver, LogFormat};

use value::is_systemd_host;

/// The path of the main file, unless `--config` names another one.
pub const DEFAULT_FILE: &str = "/etc/berth/config.toml";

/// The drop-ins beside it.
const DROP_INS: &str = "/etc/berth/conf.d/*.toml";

/// A drop-in that was skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokenDropIn {
    /// The file that was read.
    pub file: PathBuf,
    /// The mistake, with file, line and key.
    pub message: String,
}

impl Config {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_as_a_file_are_the_defaults() {
        let mut config = Config::default();
        config.network.bridge = "other".to_owned();
        config.apply(problem::read(&document::commented_default().unwrap()).unwrap());
        assert_eq!(config, Config::default());
    }

    #[test]
    fn every_setting_has_its_key_and_every_key_its_setting() {
        let mut config = Config {
            metrics_address: Some(MetricsAddress::Tcp(([127, 0, 0, 1], 1).into())),
            criu_path: Some("/usr/sbin/criu".into()),
            import_dir: Some("/import".into()),
            cni_conf_template: Some("/template".into()),
            stream_certificate: Some("/tls/certificate".into()),
            stream_key: Some("/tls/key".into()),
            ..Config::default()
        };
        config.network.mtu = Some(1500);
        let (path, root) = (Some("/usr/sbin/runc".into()), Some("/run/runc".into()));
        config.handlers.insert("runc", HandlerConfig { path, root, annotations: Vec::new() });
        let table = toml::Table::try_from(&config).unwrap();
        let mut settings: Vec<_> = table.keys().map(|name| (String::new(), name.clone())).collect();
        for (name, value) in &table {
            for (key, value) in value.as_table().into_iter().flatten() {
                match value.as_table() {
                    Some(of_one) => {
                        settings.extend(of_one.keys().map(|key| (format!("{name}.NAME"), key.clone())))
                    }
                    None => settings.push((name.clone(), key.clone())),
                }
            }
        }
        let tables = Layer::TABLES.iter().map(|(name, ..)| (String::new(), (*name).to_owned()));
        let inner = Layer::TABLES.iter().flat_map(|(_, _, keys)| *keys);
        let keys = Layer::KEYS.iter().chain(inner).map(|key| (key.table.to_owned(), key.name.to_owned()));
        let mut keys_with_tables: Vec<_> = keys.chain(tables).collect();
        settings.sort();
        keys_with_tables.sort();
        assert_eq!(settings, keys_with_tables);
        let text = config.to_toml().unwrap();
        let mut again = Config::default();
        again.apply(problem::read(&text).unwrap());
        assert_eq!(again, config);
    }

    #[test]
    fn handlers_of_several_files_are_merged() {
        let mut config = Config::default();
        for text in [
            "[handlers.runc]\npath = \"/runc\"\n",
            "[handlers.crun]\npath = \"/crun\"\n[handlers.runc]\nroot = \"/r\"\n",
        ] {
            config.apply(problem::read(text).unwrap());
        }
        let names: Vec<_> = config.handlers.iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["crun", "runc"]);
        let runc = config.handlers.get("runc").unwrap();
        assert_eq!(
            (runc.path.as_deref(), runc.root.as_deref()),
            (Some("/runc".as_ref()), Some("/r".as_ref()))
        );
        assert!(problem::read("[handlers.Runc]\n").is_err());
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
