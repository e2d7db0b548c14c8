//! Containers: one file per RPC, and what they share.
//!
//! * [`create`], [`start`], [`stop`], [`remove`], [`status`], [`list`], [`log`], [`update`]: the RPCs
//! * [`assemble`]: from a CRI config to a compiled plan with its descriptors
//! * [`exit`]: what happens when one has ended

pub mod assemble;
pub mod create;
pub mod exit;
pub mod list;
pub mod log;
pub mod reconcile;
pub mod remove;
pub mod start;
pub mod status;
pub mod stop;
pub mod update;
