//! The choice between systemd and plain cgroups.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Described;

/// The creator of pods' parent cgroups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// systemd if it runs the host on cgroup v2, else the kubelet.
    #[default]
    Auto,
    /// systemd: parents are slices.
    Systemd,
    /// The kubelet: parents are plain paths.
    Cgroupfs,
}

impl Described for CgroupDriver {
    const VALUES: &'static str = "`\"auto\"`, `\"systemd\"` or `\"cgroupfs\"`";
}

/// Whether systemd is the host's init (`sd_booted(3)`) and cgroup v2 is the only hierarchy.
pub(in crate::config) fn is_systemd_host() -> bool {
    Path::new("/run/systemd/system").is_dir() && Path::new("/sys/fs/cgroup/cgroup.controllers").is_file()
}
