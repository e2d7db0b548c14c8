//! The record of a pod on disk.

use std::path::Path;

use berth_proto::v1::{LinuxContainerResources, PodSandboxConfig};
use serde::{Deserialize, Serialize};

use super::state::PodState;
use crate::ids::PodId;
use crate::lsm::selinux::Labels;
use crate::oci::PodFiles;

/// Where a pod's hostname, hosts and resolv.conf files are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FilesLocation {
    /// In its volatile folder (pods of older daemons).
    #[default]
    Folder,
    /// In a small filesystem of the pause.
    Pause,
}

/// A pod as it is stored on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PodRecord {
    /// The pod's id.
    pub id: PodId,
    /// The config that the client sent.
    pub config: PodSandboxConfig,
    /// The runtime handler that the client sent; empty is the default.
    pub runtime_handler: String,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// The boot in which the pod was created (`/proc/sys/kernel/random/boot_id`). None of its processes exist
    /// in another boot.
    pub boot_id: String,
    /// The pause's cgroup, as a path in every hierarchy.
    pub cgroup: String,
    /// Its SELinux labels, if the host uses SELinux.
    #[serde(default)]
    pub selinux: Option<Labels>,
    /// The log folder without symbolic links, as it was when the pod was run. None if the pod has no log
    /// folder or was run by an older daemon.
    #[serde(default)]
    pub log_folder: Option<String>,
    /// The resources that the client set for the whole pod after it was run.
    #[serde(default)]
    pub resources: PodResources,
    /// Where the pod's files are.
    #[serde(default)]
    pub files: FilesLocation,
    /// Whether it and its containers are still being created from a checkpoint. Such a pod is removed if the daemon ends.
    #[serde(default)]
    pub restores: bool,
    /// The pod's state.
    pub state: PodState,
}

/// The resources of a pod as a whole (CRI `UpdatePodSandboxResourcesRequest`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PodResources {
    /// The pod's overhead: resources of everything besides its containers.
    pub overhead: Option<LinuxContainerResources>,
    /// Resources of all containers together.
    pub resources: Option<LinuxContainerResources>,
}

impl PodRecord {
    /// Returns the pod's files. `folder` is its volatile folder.
    #[must_use]
    pub fn files<'a>(&self, folder: &'a Path) -> PodFiles<'a> {
        match self.files {
            FilesLocation::Folder => PodFiles::In(folder),
            FilesLocation::Pause => PodFiles::OfPause,
        }
    }
}
