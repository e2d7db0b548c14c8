//! Statistics of pods and containers. They are read from the cgroups on request, never in the background.
//!
//! * [`container`], [`pod`]: the RPCs
//! * [`once`]: values that several pods share
//! * [`usage`]: converts the statistics of a cgroup to CRI messages; [`network`]: those of a pod's interfaces

pub mod container;
pub(crate) mod network;
pub(crate) mod once;
pub mod pod;
mod usage;

use std::sync::Arc;

use berth_image::ImageStore;

use crate::cgroups::Cgroups;
use crate::daemon::Daemon;
use crate::store::Store;

/// The parts of the daemon that statistics are read from.
#[derive(Clone, Debug)]
pub struct StatsSources {
    /// The pods and containers.
    pub store: Arc<Store>,
    /// Their cgroups.
    pub cgroups: Cgroups,
    /// The writable layers.
    pub images: ImageStore,
}

impl StatsSources {
    /// Returns the parts of a daemon.
    #[must_use]
    pub fn of(daemon: &Daemon) -> Self {
        Self {
            store: daemon.pods.store.clone(),
            cgroups: daemon.cgroups.clone(),
            images: daemon.images.clone(),
        }
    }
}
