//! Ends of cgroups: kills what runs in them, and removes them.

use std::sync::Arc;

use berth_runtime::cgroup::{Cgroup, CgroupPath, Hierarchies};

use crate::blocking::blocking;
use crate::error::CriError;
use crate::systemd;

/// Kills what is in a cgroup and removes it.
///
/// # Errors
/// It cannot be emptied or removed.
pub async fn release(hierarchies: &Arc<Hierarchies>, recorded: String) -> Result<(), CriError> {
    let hierarchies = hierarchies.clone();
    blocking(move || {
        let path = CgroupPath::from_recorded(&recorded)?;
        Cgroup::open(&hierarchies, &path).release()
    })
    .await
}

/// Kills and removes the cgroups of an object without a record, wherever they are: the name of a cgroup contains the
/// id.
///
/// # Errors
/// As [`release`].
pub async fn release_all_of(hierarchies: &Arc<Hierarchies>, id: &str) -> Result<(), CriError> {
    let names = [id.to_owned(), systemd::scope_name(id)];
    let hierarchies = hierarchies.clone();
    blocking(move || {
        let found = berth_runtime::cgroup::find(&hierarchies, &names);
        found.iter().try_for_each(|path| Cgroup::open(&hierarchies, path).release())
    })
    .await
}
