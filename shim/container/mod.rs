//! Containers: one file per RPC, and the code that they share.
//!
//! * [`create`], [`start`], [`stop`], [`remove`], [`status`], [`list`], [`log`], [`update`], [`checkpoint`]: the RPCs
//! * [`assemble`]: converts a CRI config into a compiled plan with its descriptors
//! * [`exit`]: handles the exit of a container
//! * [`hooks`]: programs that run at points of the container's life
//! * [`reconcile`]: takes over the state that the keeper reports
//! * [`nri_requests`]: changes that NRI plugins request for containers that exist; [`adjusted`]: changes to new ones
//! * [`oom_kills`]: reports processes that the kernel kills for lack of memory
//! * [`out_of_memory`]: detects that the memory limit is too small for the first process
//! * [`restore`]: CreateContainer from a checkpoint

mod adjusted;
pub mod assemble;
pub mod checkpoint;
pub mod create;
pub mod exit;
pub mod hooks;
pub mod list;
pub mod log;
pub mod nri_requests;
pub mod oom_kills;
mod out_of_memory;
pub mod reconcile;
pub mod remove;
pub(crate) mod restore;
pub mod start;
pub mod status;
pub mod stop;
pub mod update;
