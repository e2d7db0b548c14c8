//! The namespaces of a process, and the ids of a user namespace.

use serde::{Deserialize, Serialize};

use super::FdSlot;

/// The source of one of a process's namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceSource {
    /// A new namespace.
    New,
    /// The namespace of the pod's pause.
    Pod,
    /// The host's namespace: nothing is done.
    Host,
    /// The namespace of a descriptor.
    Descriptor(FdSlot),
}

/// The process namespace of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidNamespace {
    /// A new namespace in which the container's command is process 1.
    New,
    /// The pod's namespace, in which the pause is process 1.
    Pod,
    /// The host's namespace.
    Host,
    /// The namespace of another container of the same pod, by its id (CRI `NamespaceMode.TARGET`).
    Container(String),
}

/// A range of ids in a user namespace (user_namespaces(7), "uid_map").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// The first id in the namespace.
    pub inside: u32,
    /// The first id on the host.
    pub outside: u32,
    /// The number of consecutive ids.
    pub length: u32,
}

/// The ids of a pod's user namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespace {
    /// Ranges of user IDs.
    pub uids: Vec<IdRange>,
    /// Ranges of group IDs.
    pub gids: Vec<IdRange>,
}

impl UserNamespace {
    /// Formats ranges for a file that maps ids (user_namespaces(7), "uid_map").
    #[must_use]
    pub fn lines(ranges: &[IdRange]) -> String {
        ranges.iter().map(|range| format!("{} {} {}\n", range.inside, range.outside, range.length)).collect()
    }

    /// Returns the host's id of a user of the namespace, or `None` if the user is not mapped.
    #[must_use]
    pub fn host_uid(&self, inside: u32) -> Option<u32> {
        self.uids.iter().find_map(|range| {
            let offset = inside.checked_sub(range.inside).filter(|offset| *offset < range.length)?;
            range.outside.checked_add(offset)
        })
    }
}
