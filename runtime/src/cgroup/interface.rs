//! The version of the files of a cgroup.

/// The version of the files of a cgroup. A host that has both uses version 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interface {
    /// A folder for each controller.
    V1,
    /// One folder for all controllers.
    V2,
}
