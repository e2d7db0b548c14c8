//! The tables `[handlers.NAME]`: OCI runtimes by the names of their RuntimeClass handlers.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::declare::{ConfigKey, settings};
use super::value::{AbsolutePath, Described, InvalidValue, Names, check_handler_name};

/// The name of the table that contains those of the handlers.
pub(super) const TABLE: &str = "handlers";

/// The name of a handler's table in documents.
pub(super) const TABLE_OF_ONE: &str = "handlers.NAME";

settings! {
    "handlers.NAME", "An OCI runtime that runs the containers of pods with the RuntimeClass handler NAME.",
    HandlerConfig, HandlerLayer, HandlerFlags;
    keys {
        path: AbsolutePath => Option<PathBuf> = None,
            "Program of the OCI runtime.", example "\"/usr/sbin/runc\"", note "must be set";
        root: AbsolutePath => Option<PathBuf> = None,
            "Folder of the runtime's state; the default is handlers/NAME in the folder of `state`.",
            example "\"/run/berth/handlers/runc\"";
        annotations: Names => Vec<String> = Vec::new(),
            "Annotations of pods and containers that are added to the OCI spec of the containers.",
            note "in a name, `*` is any text without `/`, and `?` any other letter than `/`";
    }
    tables {}
    also {}
}

/// The handlers that are OCI runtimes, by name.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct HandlersConfig {
    by_name: BTreeMap<String, HandlerConfig>,
}

/// The handlers in one source.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(try_from = "BTreeMap<String, HandlerLayer>")]
pub struct HandlersLayer {
    by_name: BTreeMap<String, HandlerLayer>,
}

/// Handlers have no flags.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct HandlersFlags {}

impl HandlersConfig {
    /// Returns a handler by its name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&HandlerConfig> {
        self.by_name.get(name)
    }

    /// Returns the handlers in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &HandlerConfig)> {
        self.by_name.iter().map(|(name, handler)| (name.as_str(), handler))
    }

    /// Adds a handler.
    #[cfg(test)]
    pub(crate) fn insert(&mut self, name: &str, handler: HandlerConfig) {
        self.by_name.insert(name.to_owned(), handler);
    }

    /// Overrides the settings that the layer contains. Other handlers stay.
    pub fn apply(&mut self, layer: HandlersLayer) {
        for (name, handler) in layer.by_name {
            self.by_name.entry(name).or_default().apply(handler);
        }
    }
}

impl HandlersLayer {
    /// The keys of one handler.
    pub const KEYS: &[ConfigKey] = HandlerLayer::KEYS;
}

impl TryFrom<BTreeMap<String, HandlerLayer>> for HandlersLayer {
    type Error = InvalidValue;

    fn try_from(by_name: BTreeMap<String, HandlerLayer>) -> Result<Self, InvalidValue> {
        by_name.keys().try_for_each(|name| check_handler_name(name))?;
        Ok(Self { by_name })
    }
}

impl From<HandlersFlags> for HandlersLayer {
    fn from(_: HandlersFlags) -> Self {
        Self::default()
    }
}
