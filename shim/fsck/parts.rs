//! The parts of a running daemon that a check and a repair use.

use std::sync::Arc;

use berth_image::ImageStore;

use crate::cgroups::Cgroups;
use crate::config::Config;
use crate::daemon::Daemon;
use crate::network::PodNetwork;
use crate::pods::Pods;

/// The parts of a running daemon.
#[derive(Clone, Debug)]
pub struct DaemonParts {
    /// The configuration.
    pub config: Config,
    /// The pods and containers.
    pub pods: Arc<Pods>,
    /// The cgroups of pods and containers.
    pub cgroups: Cgroups,
    /// The pods' network.
    pub network: Arc<PodNetwork>,
    /// The images and the containers' writable layers.
    pub images: ImageStore,
    /// The id of this boot.
    pub boot_id: String,
}

impl DaemonParts {
    /// Returns the parts of a daemon.
    #[must_use]
    pub fn of(daemon: &Daemon) -> Self {
        Self {
            config: daemon.config.clone(),
            pods: daemon.pods.clone(),
            cgroups: daemon.cgroups.clone(),
            network: daemon.network.clone(),
            images: daemon.images.clone(),
            boot_id: daemon.host.boot_id.clone(),
        }
    }
}
