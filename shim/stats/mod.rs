//! Statistics of pods and containers: read from their cgroups when somebody asks, never in the background (DESIGN rule 9).
//!
//! * [`container`], [`pod`]: the RPCs
//! * [`rate`]: processor time as cores, from one question to the next
//! * [`usage`]: figures of a cgroup in the CRI's words; [`network`]: those of a pod's interfaces

pub mod container;
mod network;
pub mod pod;
pub mod rate;
mod usage;
