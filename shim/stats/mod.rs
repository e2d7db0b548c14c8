//! Statistics of pods and containers. They are read from the cgroups on request, never in the background.
//!
//! * [`container`], [`pod`]: the RPCs
//! * [`usage`]: converts the statistics of a cgroup to CRI messages; [`network`]: those of a pod's interfaces

pub mod container;
pub(crate) mod network;
pub mod pod;
mod usage;
