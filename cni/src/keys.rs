//! The keys of a plugin's configuration as a type.

use serde::de::DeserializeOwned;
use serde_json::Value;

/// Deserializes keys; null means absent. An error names the invalid key.
pub(crate) fn parse<T: DeserializeOwned>(config: &Value) -> Result<T, String> {
    serde_path_to_error::deserialize(berth_json::NullIsAbsent(config)).map_err(|error| {
        let path = error.path().to_string();
        format!("{path}: {}", error.into_inner())
    })
}
