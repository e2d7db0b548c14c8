//! The client's parameters for plugins.

use serde_json::Value;

use crate::call::parse_args;
use crate::conflist::{Conflist, PluginEntry};
use crate::record::Record;
use crate::runtime_config::RuntimeConfig;
use crate::{Error, Result};

/// The runtime's parameters for the plugins of one attachment.
#[derive(Debug)]
pub(crate) struct PluginParameters {
    pub(crate) args: std::collections::BTreeMap<String, String>,
    /// The runtime configuration by capability.
    runtime: Value,
}

impl PluginParameters {
    pub(crate) fn of(record: &Record) -> Self {
        Self { args: parse_args(&record.args), runtime: serde_json::json!(record.runtime) }
    }

    /// Returns the runtime configuration for a plugin: the parts whose capabilities it declares (CNI conventions,
    /// "capabilities").
    pub(crate) fn of_entry(&self, entry: &PluginEntry) -> Result<RuntimeConfig> {
        let all = self.runtime.as_object().cloned().unwrap_or_default();
        let some = all.into_iter().filter(|(name, _)| entry.has_capability(name));
        serde_json::from_value(Value::Object(some.collect()))
            .map_err(|error| Error::Invalid(format!("invalid runtime configuration: {error}")))
    }

    /// Rejects host ports that no plugin would map.
    pub(super) fn check_ports(&self, config: &Conflist) -> Result<()> {
        let ports = self.runtime.get("portMappings").and_then(Value::as_array);
        let taken = config.plugins.iter().any(|entry| entry.has_capability("portMappings"));
        match ports.filter(|ports| !taken && !ports.is_empty()) {
            None => Ok(()),
            Some(ports) => {
                let ports: Vec<String> =
                    ports.iter().filter_map(|port| port.get("hostPort")).map(Value::to_string).collect();
                let why = "no plugin of the network has the capability portMappings";
                Err(Error::Unsupported(format!("host port {}: {why} ({})", ports.join(", "), config.name)))
            }
        }
    }
}
