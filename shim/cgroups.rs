//! The cgroups of pods and containers: their names, their creation with the configured driver, and their end.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use berth_proto::v1::CgroupDriver;
use berth_runtime::cgroup::{Cgroup, CgroupPath, Hierarchies, JoinFds, Mark, OomWatcher};
use berth_runtime::client::{Placeholder, Programs};
use oci_spec::runtime::LinuxResources;

use crate::blocking::blocking;
use crate::error::CriError;
use crate::systemd::{self, ShutdownOrder, Systemd};

/// The parent cgroup of pods without a requested one. Clients remove the parents that they name; berth removes this
/// one.
const DEFAULT_PARENT: &str = "/berth";

/// Creates and removes cgroups.
pub trait CgroupManager: fmt::Debug + Send + Sync {
    /// Creates a cgroup, or sets the limits of an existing one. Returns the descriptors that a process needs to join it.
    ///
    /// # Errors
    /// The kernel refuses the cgroup or a limit.
    fn create(&self, path: &CgroupPath, resources: &LinuxResources) -> Result<JoinFds, CriError>;

    /// Kills all processes in a cgroup and removes it. One that does not exist is a success.
    ///
    /// # Errors
    /// It cannot be emptied or removed.
    fn release(&self, path: &CgroupPath) -> Result<(), CriError>;
}

impl CgroupManager for Hierarchies {
    fn create(&self, path: &CgroupPath, resources: &LinuxResources) -> Result<JoinFds, CriError> {
        Ok(Cgroup::create(self, path, resources)?.join()?)
    }

    fn release(&self, path: &CgroupPath) -> Result<(), CriError> {
        Ok(Cgroup::open(self, path).release()?)
    }
}

/// The cgroups of this host. Clones share them.
#[derive(Clone, Debug)]
pub struct Cgroups {
    hierarchies: Arc<Hierarchies>,
    /// The hierarchies themselves; a fake in unit tests.
    manager: Arc<dyn CgroupManager>,
    /// With the driver `systemd`, systemd creates the cgroups as scopes.
    scopes: Option<Arc<Scopes>>,
    /// Watches the cgroups of containers.
    oom_watcher: Arc<OomWatcher>,
}

#[derive(Debug)]
struct Scopes {
    systemd: Systemd,
    programs: Arc<Programs>,
}

impl Cgroups {
    /// Finds the hierarchies of this host. `programs` has the placeholder of new scopes. New cgroups get the mark of the daemon
    /// with this root folder.
    ///
    /// # Errors
    /// The host has no cgroups.
    pub fn detect(driver: CgroupDriver, programs: &Arc<Programs>, root: &Path) -> Result<Self, CriError> {
        let mark = Mark::of_root(root).map_err(|error| CriError::internal("read the root folder", error))?;
        let hierarchies =
            Hierarchies::detect().map_err(|error| CriError::internal("detect cgroup hierarchies", error))?;
        let scopes = || Arc::new(Scopes { systemd: Systemd::default(), programs: programs.clone() });
        let oom_watcher = OomWatcher::new(&hierarchies)
            .map_err(|error| CriError::internal("watch cgroups for OOM kills", error))?;
        let hierarchies = Arc::new(hierarchies.with_mark(mark));
        Ok(Self {
            oom_watcher: Arc::new(oom_watcher),
            manager: hierarchies.clone(),
            hierarchies,
            scopes: (driver == CgroupDriver::Systemd).then(scopes),
        })
    }

    /// Returns the hierarchies.
    #[must_use]
    pub fn hierarchies(&self) -> &Hierarchies {
        &self.hierarchies
    }

    /// Returns the watcher of OOM kills in the cgroups of containers.
    #[must_use]
    pub fn oom_watcher(&self) -> &Arc<OomWatcher> {
        &self.oom_watcher
    }

    /// Whether cgroups are version 2.
    #[must_use]
    pub fn is_v2(&self) -> bool {
        self.hierarchies.is_v2()
    }

    /// Returns the cgroup with a path, whether it exists or not.
    #[must_use]
    pub fn at(&self, path: &CgroupPath) -> Cgroup {
        Cgroup::open(&self.hierarchies, path)
    }

    /// Returns the cgroup of a record, whether it exists or not.
    ///
    /// # Errors
    /// The recorded path is invalid.
    pub fn recorded(&self, path: &str) -> Result<Cgroup, CriError> {
        Ok(self.at(&CgroupPath::from_recorded(path)?))
    }

    /// Manages cgroups with another manager.
    #[cfg(test)]
    pub(crate) fn managed_by(self, manager: impl CgroupManager + 'static) -> Self {
        Self { manager: Arc::new(manager), ..self }
    }

    /// Creates a cgroup, or sets the limits of the one that systemd has created.
    ///
    /// # Errors
    /// The kernel refuses the cgroup or a limit.
    pub fn create(&self, path: &CgroupPath, resources: &LinuxResources) -> Result<JoinFds, CriError> {
        self.manager.create(path, resources)
    }

    /// Returns the cgroup of a pod below the requested parent: a path, or a scope in a slice for the systemd driver.
    ///
    /// # Errors
    /// `InvalidArgument`: the parent is not a path, or not a slice.
    pub fn path_of_pod(&self, parent: Option<&str>, id: &str) -> Result<CgroupPath, CriError> {
        let invalid = |why: String| CriError::invalid("config.linux.cgroup_parent", why);
        if self.scopes.is_none() {
            let parent = parent.unwrap_or(DEFAULT_PARENT);
            return CgroupPath::new(parent, id).map_err(|error| invalid(error.to_string()));
        }
        let slice = parent.unwrap_or(systemd::DEFAULT_SLICE);
        // The kubelet may send the path of the slice; its last part is the name.
        let slice = slice.trim_end_matches('/').rsplit('/').next().unwrap_or(slice);
        if !slice.ends_with(".slice") {
            return Err(invalid(format!("{slice:?} is not a slice, and the cgroup driver is systemd")));
        }
        CgroupPath::new(slice, &systemd::scope_name(id)).map_err(|error| invalid(error.to_string()))
    }

    /// Returns the cgroup of a container, beside that of its pod's pause.
    ///
    /// # Errors
    /// The recorded path of the pod's cgroup is invalid.
    pub fn path_of_container(&self, pod_cgroup: &str, id: &str) -> Result<CgroupPath, CriError> {
        let parent = CgroupPath::from_recorded(pod_cgroup)?.parent();
        let leaf = match self.scopes {
            Some(_) => systemd::scope_name(id),
            None => id.to_owned(),
        };
        CgroupPath::new(&parent.to_string(), &leaf)
            .map_err(|error| CriError::internal("name the container's cgroup", error))
    }

    /// Returns a container's cgroup in the form of the OCI spec: a path, or the scope in its slice for the systemd
    /// driver.
    ///
    /// # Errors
    /// The recorded path is invalid.
    pub fn spec_path(&self, recorded: String, id: &str) -> Result<String, CriError> {
        if self.scopes.is_none() {
            return Ok(recorded);
        }
        let slice = CgroupPath::from_recorded(&recorded)?.parent();
        Ok(systemd::spec_path(slice.leaf().unwrap_or_default(), id))
    }

    /// Starts the scope of a cgroup, if systemd creates cgroups. A scope needs a process from its start, the
    /// placeholder.
    ///
    /// # Errors
    /// systemd cannot be reached or refuses.
    pub async fn start_scope(
        &self,
        path: &CgroupPath,
        limits: &LinuxResources,
        order: &ShutdownOrder,
    ) -> Result<Option<Placeholder>, CriError> {
        let Some(scopes) = &self.scopes else { return Ok(None) };
        let version = self.hierarchies.version();
        scopes.systemd.start_scope(&scopes.programs, version, path, limits, order).await.map(Some)
    }

    /// Sends new limits to systemd, if it creates the cgroups: it would otherwise restore its own.
    ///
    /// # Errors
    /// systemd cannot be reached or refuses.
    pub async fn set_scope_limits(&self, path: &CgroupPath, limits: &LinuxResources) -> Result<(), CriError> {
        let Some(scopes) = &self.scopes else { return Ok(()) };
        scopes.systemd.set_limits(self.hierarchies.version(), path, limits).await
    }

    /// Restores the limits of before an update in systemd.
    ///
    /// # Errors
    /// As [`Self::set_scope_limits`].
    pub async fn restore_scope_limits(
        &self,
        path: &CgroupPath,
        before: &LinuxResources,
        after: &LinuxResources,
    ) -> Result<(), CriError> {
        let Some(scopes) = &self.scopes else { return Ok(()) };
        scopes.systemd.restore_limits(self.hierarchies.version(), path, before, after).await
    }

    /// Whether systemd creates the cgroups, as scopes.
    #[must_use]
    pub fn has_scopes(&self) -> bool {
        self.scopes.is_some()
    }

    /// Kills all processes in the cgroup of a record.
    ///
    /// # Errors
    /// A process does not end.
    pub async fn kill(&self, recorded: String) -> Result<(), CriError> {
        let cgroups = self.clone();
        blocking(move || Ok::<_, CriError>(cgroups.recorded(&recorded)?.kill()?)).await
    }

    /// Kills what is in the cgroup of a record and removes it.
    ///
    /// # Errors
    /// It cannot be emptied or removed.
    pub async fn release(&self, recorded: String) -> Result<(), CriError> {
        let cgroups = self.clone();
        blocking(move || cgroups.manager.release(&CgroupPath::from_recorded(&recorded)?)).await
    }

    /// Kills and removes the cgroups of an object without a record, wherever they are: the name of a cgroup contains
    /// the id.
    ///
    /// # Errors
    /// As [`Self::release`].
    pub async fn release_all_of(&self, id: &str) -> Result<(), CriError> {
        let names = [id.to_owned(), systemd::scope_name(id)];
        let hierarchies = self.hierarchies.clone();
        blocking(move || {
            let found = berth_runtime::cgroup::find(&hierarchies, &names, hierarchies.own_mark());
            found.iter().try_for_each(|path| Cgroup::open(&hierarchies, path).release())
        })
        .await
    }

    /// Removes the default parent cgroup if it is empty. Call it only when no pod is being created.
    pub fn release_default_parent(&self) {
        let released =
            self.recorded(DEFAULT_PARENT).and_then(|cgroup| Ok::<_, CriError>(cgroup.remove_if_unused()?));
        if let Err(error) = released {
            tracing::warn!(%error, "failed to remove the cgroup {DEFAULT_PARENT}");
        }
    }
}
