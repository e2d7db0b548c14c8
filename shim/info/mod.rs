//! What berth says of itself: Version, Status and RuntimeConfig.
//!
//! * [`status`]: conditions, handlers and features, from plain inputs
//! * this file: the same for a running daemon

pub mod status;

use berth_proto::v1::{LinuxRuntimeConfiguration, RuntimeConfigResponse, StatusResponse, VersionResponse};

use crate::check;
use crate::config::Config;
use crate::daemon::Daemon;
use crate::error::CriError;

/// The version of berth.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The name that the kubelet shows before the version: `berth://0.1.0`.
pub const NAME: &str = "berth";

/// The version of the CRI.
pub const API_VERSION: &str = "v1";

/// Version.
#[must_use]
pub fn version() -> VersionResponse {
    VersionResponse {
        // The kubelet's own version of its old interface, which it still compares (kuberuntime, `typedVersion`).
        version: "0.1.0".to_owned(),
        runtime_name: NAME.to_owned(),
        runtime_version: VERSION.to_owned(),
        runtime_api_version: API_VERSION.to_owned(),
    }
}

/// Status of a running daemon.
///
/// # Errors
/// The verbose part cannot be written as JSON.
pub fn status_of(daemon: &Daemon, verbose: bool) -> Result<StatusResponse, CriError> {
    let network = daemon.network.status();
    let network =
        status::Network { ready: network.ready, reason: &network.reason, message: &network.message };
    status::status(&daemon.config, network, check::host(), verbose)
}

/// RuntimeConfig of a running daemon.
#[must_use]
pub fn runtime_config_of(daemon: &Daemon) -> RuntimeConfigResponse {
    runtime_config(&daemon.config)
}

/// RuntimeConfig: the cgroup driver, which the kubelet takes over.
#[must_use]
pub fn runtime_config(config: &Config) -> RuntimeConfigResponse {
    let linux = LinuxRuntimeConfiguration { cgroup_driver: config.cgroup_driver().into() };
    RuntimeConfigResponse { linux: Some(linux) }
}
