//! The settings of one source, a file or the flags: every key is optional, every value is checked.

use std::net::SocketAddr;

use serde::Deserialize;

use super::value::{
    AbsolutePath, AtLeastOne, BridgeName, ByteSize, CgroupDriver, Depth, HandlerNames, LogFilter, LogFormat,
    Mtu, Parallel, PathList, PluginNames, References, SocketPath, Subnets, Ulimits,
};

/// The settings of one source. The fields are those of [`super::Config`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs, reason = "the same fields as Config, which documents them")]
pub struct Layer {
    pub socket: Option<SocketPath>,
    pub root: Option<AbsolutePath>,
    pub state: Option<AbsolutePath>,
    pub cni_conf_dir: Option<AbsolutePath>,
    pub cni_bin_dirs: Option<PathList>,
    pub cni_data_dir: Option<AbsolutePath>,
    pub cni_conf_template: Option<AbsolutePath>,
    pub cni_external_plugins: Option<PluginNames>,
    pub cni_plugin_timeout: Option<AtLeastOne>,
    pub cdi_spec_dirs: Option<PathList>,
    pub hooks_dirs: Option<PathList>,
    pub certs_dir: Option<PathList>,
    pub registries_conf: Option<AbsolutePath>,
    pub auth_file: Option<PathList>,
    pub signature_policy: Option<AbsolutePath>,
    pub import_dir: Option<AbsolutePath>,
    pub pinned_images: Option<References>,
    pub parallel_pulls: Option<Parallel>,
    pub max_image_size: Option<ByteSize>,
    pub max_image_files: Option<AtLeastOne>,
    pub max_image_depth: Option<Depth>,
    pub max_compression_ratio: Option<AtLeastOne>,
    pub stream_address: Option<SocketAddr>,
    pub stream_certificate: Option<AbsolutePath>,
    pub stream_key: Option<AbsolutePath>,
    pub metrics_address: Option<SocketAddr>,
    pub log_level: Option<LogFilter>,
    pub log_format: Option<LogFormat>,
    pub cgroup_driver: Option<CgroupDriver>,
    pub restrict_oom_score_adj: Option<bool>,
    pub default_ulimits: Option<Ulimits>,
    pub shm_size: Option<ByteSize>,
    pub device_ownership_from_security_context: Option<bool>,
    pub runtime_handlers: Option<HandlerNames>,
    pub network: NetworkLayer,
}

/// The settings of one source for the built-in network.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs, reason = "the same fields as NetworkConfig, which documents them")]
pub struct NetworkLayer {
    pub bridge: Option<BridgeName>,
    pub subnets: Option<Subnets>,
    pub mtu: Option<Mtu>,
}
