//! What every RPC works with: the store, the rooms below (runtime, cni, image) and the operations in flight.

use std::path::Path;
use std::sync::Arc;

use berth_cni::Network;
use berth_image::ImageStore;
use berth_runtime::cgroup::Hierarchies;
use berth_runtime::client::Programs;

use crate::config::Config;
use crate::operation::Operations;
use crate::store::{Folders, Store};

/// One running daemon. It is shared by all requests and holds nothing that is not also on disk or in a keeper.
#[derive(Debug)]
pub struct Daemon {
    /// As read at start.
    pub config: Config,
    /// Pods and containers.
    pub store: Store,
    /// Where they are on disk.
    pub folders: Folders,
    /// The images and the containers' writable layers.
    pub images: ImageStore,
    /// The pods' network.
    pub network: Network,
    /// The cgroups of this host.
    pub hierarchies: Hierarchies,
    /// The keeper and the pause, sealed.
    pub programs: Programs,
    /// What is in flight.
    pub operations: Operations,
    /// This boot: nothing that was made in another one runs.
    pub boot_id: String,
    /// The newest capability that the kernel knows.
    pub last_capability: u8,
    /// The daemon's own oom_score_adj: without CAP_SYS_RESOURCE nothing can go below it.
    pub oom_score_adj: i32,
}

/// A daemon as its requests hold it.
pub type Shared = Arc<Daemon>;

/// The id of this boot (proc(5), `/proc/sys/kernel/random/boot_id`).
///
/// # Errors
/// The file cannot be read.
pub fn boot_id() -> std::io::Result<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned())
}

/// A number from a file of procfs, such as `/proc/sys/kernel/cap_last_cap`.
///
/// # Errors
/// The file cannot be read or holds no such number.
pub fn number_from<T: std::str::FromStr>(file: &Path) -> std::io::Result<T> {
    std::fs::read_to_string(file)?
        .trim()
        .parse()
        .map_err(|_| std::io::Error::new(std::io::ErrorKind::InvalidData, file.display().to_string()))
}

/// Runs what may block (files, cgroups, mounts) away from the threads that answer requests.
///
/// # Errors
/// As `work`, or that it panicked.
pub async fn blocking<T, E, F>(work: F) -> Result<T, crate::error::CriError>
where
    F: FnOnce() -> Result<T, E> + Send + 'static,
    T: Send + 'static,
    E: Into<crate::error::CriError> + Send + 'static,
{
    let span = tracing::Span::current();
    match tokio::task::spawn_blocking(move || span.in_scope(work)).await {
        Ok(result) => result.map_err(Into::into),
        Err(panic) => Err(crate::error::CriError::internal("a blocking step", panic)),
    }
}
