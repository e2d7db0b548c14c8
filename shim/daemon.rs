//! The running daemon: the parts that requests work with. Only the services and the operations on pods and containers
//! take all of it; every other function takes the parts that it uses (`tests/it/daemon_parts.rs` counts them).

use std::sync::Arc;

use berth_image::ImageStore;
use berth_runtime::client::Programs;
use berth_runtime::seccomp::Cache;

use crate::blocking::blocking;
use crate::cgroups::Cgroups;
use crate::config::Config;
use crate::error::CriError;
use crate::host::HostFacts;
use crate::images;
use crate::instruments::Instruments;
use crate::keeper::KeeperLauncher;
use crate::network::PodNetwork;
use crate::pods::Pods;
use crate::root_mount::{Overlay, RootMounter};
use crate::session_url::SessionUrls;

/// One running daemon. All requests share it. It holds nothing that is not also on disk or in a keeper.
#[derive(Debug)]
pub struct Daemon {
    /// The configuration, as read at the start.
    pub config: Config,
    /// The pods and containers, the operations on them and their events.
    pub pods: Arc<Pods>,
    /// The images and the containers' writable layers.
    pub images: ImageStore,
    /// The pods' network.
    pub network: Arc<PodNetwork>,
    /// The cgroups of pods and containers.
    pub cgroups: Cgroups,
    /// Facts about this host and this process.
    pub host: HostFacts,
    /// Starts the keepers of pods.
    pub keepers: Arc<dyn KeeperLauncher>,
    /// Mounts the root filesystems of containers.
    pub roots: Arc<dyn RootMounter>,
    /// Compiled seccomp profiles.
    pub filters: Arc<Cache>,
    /// The streaming sessions: those that wait for their client, and the address that serves them.
    pub sessions: Arc<SessionUrls>,
}

/// A daemon, shared between requests.
pub type Shared = Arc<Daemon>;

/// Opens the crates below the daemon and looks at the host. [`crate::recover::run`] then takes over the pods of an earlier daemon.
///
/// # Errors
/// A folder cannot be created, or the host lacks a required feature.
pub async fn open(config: Config) -> Result<Shared, CriError> {
    let root = config.root.clone();
    blocking(move || crate::store::file::make_private_folder(&root)).await?;
    let images = ImageStore::open(images::options(&config)).await?;
    let instruments = Arc::new(Instruments::default());
    let network = Arc::new(PodNetwork::open(&config, instruments.clone())?);
    let programs = Arc::new(Programs::seal(crate::programs::KEEPER, crate::programs::PAUSE)?);
    Ok(Arc::new(Daemon {
        pods: Arc::new(Pods::open(&config, network.network.clone(), instruments)?),
        images,
        network,
        cgroups: Cgroups::detect(config.cgroup_driver(), &programs, &config.root)?,
        host: HostFacts::detect()?,
        keepers: programs,
        roots: Arc::new(Overlay),
        filters: Arc::default(),
        sessions: Arc::default(),
        config,
    }))
}
