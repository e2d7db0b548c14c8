//! Containers: one file per RPC, and what they share.
//!
//! * [`create`], [`start`], [`stop`], [`remove`], [`status`], [`list`], [`log`], [`update`]: the RPCs
//! * [`assemble`]: from a CRI config to a compiled plan with its descriptors
//! * [`exit`]: what happens when one has ended
//! * [`out_of_memory`]: whether a container's limit is too little for its first process

pub mod assemble;
pub mod create;
pub mod exit;
pub mod list;
pub mod log;
mod out_of_memory;
pub mod reconcile;
pub mod remove;
pub mod start;
pub mod status;
pub mod stop;
pub mod update;
