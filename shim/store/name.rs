//! The names by which clients identify pods and containers. The fields are stored separately, since each of
//! them can contain any separator: the namespace `a/b` with the pod `c` differs from the namespace `a` with
//! the pod `b/c`.

use std::fmt;

use berth_proto::v1::{ContainerMetadata, PodSandboxMetadata};

/// The identity of a pod sandbox (CRI `PodSandboxMetadata`: name, namespace, uid and attempt together are unique).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodName {
    namespace: String,
    name: String,
    uid: String,
    attempt: u32,
}

impl From<&PodSandboxMetadata> for PodName {
    fn from(metadata: &PodSandboxMetadata) -> Self {
        Self {
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone(),
            uid: metadata.uid.clone(),
            attempt: metadata.attempt,
        }
    }
}

impl PodName {
    /// Returns the namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Returns the name without its namespace.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl ContainerName {
    /// Returns the name without its attempt.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Only for messages: two names can have the same text.
impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}", self.namespace, self.name, self.uid, self.attempt)
    }
}

/// The identity of a container in its pod (CRI `ContainerMetadata`: name and attempt together are unique).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ContainerName {
    name: String,
    attempt: u32,
}

impl From<&ContainerMetadata> for ContainerName {
    fn from(metadata: &ContainerMetadata) -> Self {
        Self { name: metadata.name.clone(), attempt: metadata.attempt }
    }
}

impl fmt::Display for ContainerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.name, self.attempt)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn names_are_equal_where_all_their_fields_are(
            one in ("[a/]{1,3}", "[a/]{1,3}", "[a/]{1,3}", 0..2_u32),
            other in ("[a/]{1,3}", "[a/]{1,3}", "[a/]{1,3}", 0..2_u32),
        ) {
            let name = |(namespace, name, uid, attempt): &(String, String, String, u32)| {
                PodName::from(&PodSandboxMetadata {
                    namespace: namespace.clone(), name: name.clone(), uid: uid.clone(), attempt: *attempt,
                })
            };
            prop_assert_eq!(name(&one) == name(&other), one == other);
        }
    }
}
