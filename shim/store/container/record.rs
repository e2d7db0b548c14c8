//! The record of a container on disk.

use std::collections::BTreeMap;
use std::path::PathBuf;

use berth_proto::v1::{ContainerConfig, ImageSpec, LinuxContainerResources};
use serde::{Deserialize, Serialize};

use super::state::ContainerState;
use crate::ids::{ContainerId, PodId};

/// A container as it is stored on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// The container's id.
    pub id: ContainerId,
    /// The id of its pod.
    pub pod: PodId,
    /// The config that the client sent.
    pub config: ContainerConfig,
    /// The id of its image.
    pub image_id: String,
    /// The value of `ContainerStatus.image_ref`: the image's digest reference, or its id.
    pub image_ref: String,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// As [`PodRecord::boot_id`](crate::store::PodRecord::boot_id).
    pub boot_id: String,
    /// The absolute path of the log file.
    pub log_path: Option<String>,
    /// Its cgroup, as a path in every hierarchy.
    pub cgroup: String,
    /// The signal that StopContainer sends.
    pub stop_signal: i32,
    /// The user it runs as, resolved in the image.
    pub user: RecordedUser,
    /// The current limits; the config keeps those that the client sent. None if an older daemon created the
    /// container.
    #[serde(default)]
    pub resources: Option<LinuxContainerResources>,
    /// Annotations that the client sent with its last update of the limits.
    #[serde(default)]
    pub update_annotations: BTreeMap<String, String>,
    /// Whether its processes are those of a checkpoint.
    #[serde(default)]
    pub restores: bool,
    /// The OCI runtime that runs it. None for berth's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<ContainerRuntime>,
    /// The value of `ContainerStatus.image`: the image as the user named it. None if an older daemon created
    /// the container.
    #[serde(default)]
    pub image: Option<ImageSpec>,
    /// The container's state.
    pub state: ContainerState,
}

impl ContainerRecord {
    /// Returns the current limits.
    #[must_use]
    pub fn limits(&self) -> LinuxContainerResources {
        let requested = || self.config.linux.as_ref().and_then(|linux| linux.resources.clone());
        self.resources.clone().or_else(requested).unwrap_or_default()
    }
}

/// The OCI runtime of a container: the configuration may change while the container exists.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ContainerRuntime {
    /// The absolute path of its program.
    pub program: PathBuf,
    /// The folder of its state.
    pub root: PathBuf,
}

/// A user as resolved in the image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedUser {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}
