//! Cgroups of pods and containers, by the daemon's mark. Those without a mark, of older daemons, are found by the ids of
//! other objects.

use berth_runtime::cgroup::{CgroupPath, find, marked};

use super::{Object, ObjectKind, Owner, Place, Scope};
use crate::systemd;

/// Returns the marked cgroups.
#[must_use]
pub fn objects(scope: &Scope) -> Vec<Object> {
    let (Some(hierarchies), Some(mark)) = (&scope.hierarchies, &scope.mark) else { return Vec::new() };
    marked(hierarchies, mark).into_iter().map(|path| object(path, true)).collect()
}

/// Returns the cgroups of objects with these ids, with this daemon's mark or without one.
#[must_use]
pub fn of_ids(scope: &Scope, ids: &[String]) -> Vec<Object> {
    let (Some(hierarchies), Some(mark)) = (&scope.hierarchies, &scope.mark) else { return Vec::new() };
    let scopes = ids.iter().map(|id| systemd::scope_name(id));
    let names: Vec<String> = ids.iter().cloned().chain(scopes).collect();
    find(hierarchies, &names, Some(mark)).into_iter().map(|path| object(path, false)).collect()
}

fn object(path: CgroupPath, certain: bool) -> Object {
    let leaf = path.leaf().unwrap_or_default();
    let id = leaf.strip_prefix("berth-").and_then(|name| name.strip_suffix(".scope")).unwrap_or(leaf);
    Object {
        kind: ObjectKind::Cgroup,
        owner: Owner::Either(id.to_owned()),
        name: path.to_string(),
        place: Place::Cgroup(path),
        certain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_of_a_cgroup_is_in_its_name() {
        let id = "0f".repeat(32);
        for leaf in [id.clone(), systemd::scope_name(&id)] {
            let object = object(CgroupPath::new("/a/b", &leaf).unwrap(), true);
            assert_eq!(object.owner, Owner::Either(id.clone()));
            assert_eq!(object.name, format!("/a/b/{leaf}"));
        }
    }
}
