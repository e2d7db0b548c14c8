//! The parts of the daemon that a request for metrics reads.

use std::sync::Arc;

use berth_image::ImageStore;
use berth_proto::v1::CgroupDriver;

use crate::cgroups::Cgroups;
use crate::daemon::Daemon;
use crate::pods::Pods;

/// The parts of the daemon that a request for metrics reads.
#[derive(Clone, Debug)]
pub struct ScrapeSources {
    /// The pods and containers, the operations in flight and the counters.
    pub pods: Arc<Pods>,
    /// The images.
    pub images: ImageStore,
    /// The cgroups of this host.
    pub cgroups: Cgroups,
    /// Whether systemd creates the cgroups.
    pub uses_systemd: bool,
}

impl ScrapeSources {
    /// Returns the parts of a daemon.
    #[must_use]
    pub fn of(daemon: &Daemon) -> Self {
        Self {
            pods: daemon.pods.clone(),
            images: daemon.images.clone(),
            cgroups: daemon.cgroups.clone(),
            uses_systemd: daemon.config.cgroup_driver() == CgroupDriver::Systemd,
        }
    }
}
