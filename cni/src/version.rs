//! The supported versions of the CNI specification.

use serde_json::Value;

/// A supported version of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    /// All versions, oldest first.
    pub(crate) const ALL: [Self; 5] = [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// The version as it is written in configurations.
    #[must_use]
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Returns the version of a configuration: its `cniVersion`, or the highest supported one of its `cniVersions`
    /// (since 1.1).
    ///
    /// # Errors
    /// The version is not supported.
    pub(crate) fn of(config: &Value) -> Result<Self, String> {
        let supported = |text: &str| Self::ALL.into_iter().find(|version| version.text() == text);
        let list = config.get("cniVersions").and_then(Value::as_array);
        let best = list.into_iter().flatten().filter_map(Value::as_str).filter_map(supported).max();
        match (config.get("cniVersion").and_then(Value::as_str), best) {
            (_, Some(best)) => Ok(best),
            (None, None) => Ok(Self::V0_3_1),
            (Some(text), None) => supported(text).ok_or_else(|| {
                let all: Vec<_> = Self::ALL.iter().map(|version| version.text()).collect();
                format!("cniVersion: unsupported version {text:?}, expected one of {}", all.join(", "))
            }),
        }
    }
}
