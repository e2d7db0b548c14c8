//! The Node Resource Interface (NRI, github.com/containerd/nri): programs on the node, the plugins, are called at the events
//! of pods and containers, and change containers that are being created or that run.
//!
//! * [`wire`]: the connection to a plugin; [`plugin`]: one plugin from its registration to its end
//! * [`launch`]: starts the plugins of the plugin folder; [`listener`]: accepts plugins that connect
//! * [`events`]: the calls about pods and containers
//! * [`adaptation`]: all plugins, in the order of their indexes; calls them one after the other
//! * [`owners`], [`merge`], [`limits`]: merges the changes of all plugins, and finds conflicts
//! * [`adjust`]: applies the merged changes to an OCI spec
//! * [`validate`]: the default validator
//!
//! This module knows neither the store nor the CRI. [`adaptation::NriHost`] is what it needs of the daemon.

pub mod adaptation;
pub mod adjust;
pub mod events;
pub mod launch;
pub mod limits;
pub mod listener;
pub mod merge;
pub mod owners;
pub mod plugin;
pub mod validate;
pub mod wire;
