//! Starts keepers. Unit tests start fakes instead.

use std::fmt::Debug;
use std::path::Path;

use berth_runtime::client::{ClientError, Keeper, Programs, spawn};

use crate::ids::PodId;

/// Starts the keeper of a pod.
pub trait KeeperLauncher: Debug + Send + Sync {
    /// Starts the keeper of `pod` with its socket and its log in `folder`.
    ///
    /// # Errors
    /// The socket or the log cannot be created, or the program does not start.
    fn launch(&self, pod: &PodId, folder: &Path) -> Result<Keeper, ClientError>;
}

impl KeeperLauncher for Programs {
    fn launch(&self, pod: &PodId, folder: &Path) -> Result<Keeper, ClientError> {
        spawn(self, pod.as_str(), folder)
    }
}
