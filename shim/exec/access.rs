//! Access to running containers, for commands and sessions.

use std::sync::Arc;

use berth_runtime::cgroup::Cgroup;
use berth_runtime::seccomp::Cache;

use crate::cgroups::Cgroups;
use crate::daemon::Daemon;
use crate::error::CriError;
use crate::keeper::KeeperClient;
use crate::store::{Container, ContainerState, Store};

/// The parts of the daemon that commands and sessions use. Clones share them.
#[derive(Clone, Debug)]
pub struct ContainerAccess {
    /// The pods and containers.
    pub store: Arc<Store>,
    /// Their cgroups.
    pub cgroups: Cgroups,
    /// Compiled seccomp profiles.
    pub filters: Arc<Cache>,
}

/// Returns the keeper of a running container, or an error if it does not run.
pub(super) fn keeper_of(store: &Store, container: &Container) -> Result<KeeperClient, CriError> {
    let ContainerState::Running { .. } = container.state() else {
        return Err(CriError::precondition(format!("container {}", container.id), "it is not running"));
    };
    let link = store.pod(container.pod.as_str())?.link();
    link.ok_or_else(|| {
        CriError::precondition(format!("pod sandbox {}", container.pod), "its keeper has ended")
    })
}

impl ContainerAccess {
    /// Returns the parts of a daemon.
    #[must_use]
    pub fn of(daemon: &Daemon) -> Self {
        Self {
            store: daemon.pods.store.clone(),
            cgroups: daemon.cgroups.clone(),
            filters: daemon.filters.clone(),
        }
    }

    /// Returns the cgroup of a container.
    pub(super) fn cgroup_of(&self, container: &Container) -> Result<Cgroup, CriError> {
        self.cgroups.recorded(&container.with(|record| record.cgroup.clone()))
    }
}
