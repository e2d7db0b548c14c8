//! Version, Status and RuntimeConfig.
//!
//! * [`status`]: conditions, handlers and features, from plain inputs
//! * this file: the responses of a running daemon

pub mod status;

use berth_cni::Network;
use berth_proto::v1::{LinuxRuntimeConfiguration, RuntimeConfigResponse, StatusResponse, VersionResponse};

use crate::blocking::blocking;
use crate::check;
use crate::checkpoint::criu::{self, CriuReport};
use crate::config::Config;
use crate::error::CriError;
use crate::handlers::features;

/// The version of berth.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The name of the runtime. The kubelet shows it before the version: `berth://0.1.0`.
pub const NAME: &str = "berth";

/// The version of the CRI.
pub const API_VERSION: &str = "v1";

/// Returns the response of Version.
#[must_use]
pub fn version() -> VersionResponse {
    VersionResponse {
        // The version of the kubelet's old interface, which the kubelet still compares (kuberuntime, `typedVersion`).
        version: "0.1.0".to_owned(),
        runtime_name: NAME.to_owned(),
        runtime_version: VERSION.to_owned(),
        runtime_api_version: API_VERSION.to_owned(),
    }
}

/// Returns the status of a running daemon. A report about CRIU makes it verbose.
///
/// # Errors
/// The verbose part cannot be encoded as JSON.
pub async fn status_of(
    config: &Config,
    network: &Network,
    criu: Option<&CriuReport>,
) -> Result<StatusResponse, CriError> {
    let network = network.status();
    let network =
        status::NetworkReadiness { ready: network.ready, reason: &network.reason, message: &network.message };
    let features = features::of_handlers(&config.handlers).await?;
    status::response(config, network, check::host(), criu, &features)
}

/// Looks for CRIU, for a verbose status.
///
/// # Errors
/// `Internal`: the search panicked.
pub async fn criu_report(config: &Config) -> Result<CriuReport, CriError> {
    let configured = config.criu_path.clone();
    let kernel = check::files::kernel_version();
    blocking(move || Ok::<_, CriError>(criu::report(configured.as_deref(), kernel))).await
}

/// Returns the runtime config: the cgroup driver, which the kubelet adopts.
#[must_use]
pub fn runtime_config(config: &Config) -> RuntimeConfigResponse {
    let linux = LinuxRuntimeConfiguration { cgroup_driver: config.cgroup_driver().into() };
    RuntimeConfigResponse { linux: Some(linux) }
}
