//! Statistics of pods and containers: read from their cgroups when somebody asks, never in the background.
//!
//! * [`container`], [`pod`]: the RPCs
//! * [`usage`]: figures of a cgroup in the CRI's words; [`network`]: those of a pod's interfaces

pub mod container;
mod network;
pub mod pod;
mod usage;
