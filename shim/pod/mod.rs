//! Pod sandboxes: one file per RPC, and what they share.
//!
//! * [`run`], [`stop`], [`remove`], [`status`], [`list`], [`update`]: the RPCs
//! * [`files`]: hostname, hosts and resolv.conf of a pod
//! * [`follow`]: what a keeper tells unasked

pub mod files;
pub mod follow;
pub(crate) mod keeper;
pub mod list;
pub(crate) mod network;
pub mod port_forward;
pub mod remove;
pub mod run;
pub mod status;
pub mod stop;
pub mod update;
