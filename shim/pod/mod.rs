//! Pod sandboxes: one file per RPC, and the code that they share.
//!
//! * [`run`], [`stop`], [`remove`], [`status`], [`list`], [`update`], [`port_forward`],
//!   [`checkpoint`], [`restore`]: the RPCs
//! * [`files`]: hostname, hosts and resolv.conf of a pod
//! * [`follow`]: handles the events of a keeper
//! * [`keeper`]: the keeper of a pod
//! * [`network`]: the runtime config of a pod for the network plugins
//! * [`stopper`]: the end of a pod

pub mod checkpoint;
pub mod files;
pub mod follow;
pub(crate) mod keeper;
pub mod list;
pub(crate) mod network;
pub mod port_forward;
pub mod remove;
pub mod restore;
pub mod run;
pub mod status;
pub mod stop;
pub mod stopper;
pub mod update;
