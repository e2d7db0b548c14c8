//! RuntimeClass handlers that are OCI runtimes: the containers of a pod with such a handler are created, started and removed
//! through the runtime's command line. The pod itself, with its namespaces and its network, stays berth's.
//!
//! * [`bundle`]: the spec as the runtime reads it, and its folder
//! * [`annotations`]: annotations that are added to the spec
//! * [`calls`]: calls of the daemon; the keeper makes those that start processes
//! * [`features`]: what a runtime supports
//! * this file: the runtime of a handler

pub mod annotations;
pub mod bundle;
pub mod calls;
pub mod features;

use std::path::Path;

use crate::config::{Config, HandlersConfig};
use crate::store::container::ContainerRuntime;

/// Returns the OCI runtime of a handler; none if the handler is berth's own runtime.
#[must_use]
pub fn runtime_of(config: &Config, handler: &str) -> Option<ContainerRuntime> {
    let program = config.handlers.get(handler)?.path.clone()?;
    let default_root = || config.state.join("handlers").join(handler);
    let root = config.handlers.get(handler)?.root.clone().unwrap_or_else(default_root);
    Some(ContainerRuntime { program, root })
}

/// Returns the programs of all handlers by name.
pub fn programs(handlers: &HandlersConfig) -> impl Iterator<Item = (&str, &Path)> {
    handlers.iter().filter_map(|(name, handler)| Some((name, handler.path.as_deref()?)))
}
