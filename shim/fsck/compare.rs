//! Compares the objects on the host with the records.

use std::collections::BTreeSet;

use super::known::Known;
use crate::inventory::{Object, ObjectKind, Owner, Place};
use crate::store::{ContainerState, PodState};

/// A leftover, or a record whose object is gone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Candidate {
    /// The object, or the record.
    pub object: Object,
    /// Why it is one.
    pub reason: String,
}

impl Candidate {
    /// Creates a candidate.
    #[must_use]
    pub fn new(object: Object, reason: impl Into<String>) -> Self {
        Self { object, reason: reason.into() }
    }
}

/// Returns the objects that belong to no record. An object whose mark does not distinguish daemons counts if another object
/// shows that its owner is of this daemon.
#[must_use]
pub fn unowned(objects: &[Object], known: &Known) -> Vec<Candidate> {
    let is_certain = |object: &&Object| object.certain;
    let own: BTreeSet<&str> = objects.iter().filter(is_certain).map(|object| object.owner.id()).collect();
    let is_ours = |object: &&Object| object.certain || own.contains(object.owner.id());
    objects.iter().filter(is_ours).filter_map(|object| unowned_one(object, known)).collect()
}

fn unowned_one(object: &Object, known: &Known) -> Option<Candidate> {
    let id = object.owner.id();
    if known.creating.contains(id) {
        return None;
    }
    // A released pod has folders, but nothing that needs a release.
    let is_folder = matches!(object.kind, ObjectKind::PodFolder | ObjectKind::StateFolder);
    let pod = known.pods.get(id);
    let owned_by_pod = pod.is_some_and(|pod| is_folder || pod.holds_resources());
    let owned_by_container = known.containers.contains_key(id);
    let reason = match &object.owner {
        Owner::Daemon => "it has no record",
        Owner::Pod(_) if owned_by_pod => return None,
        Owner::Container(_) if owned_by_container => return None,
        Owner::Either(_) if owned_by_pod || owned_by_container => return None,
        Owner::Pod(_) | Owner::Either(_) if pod.is_some() => "its pod was released",
        Owner::Pod(id) if id.is_empty() => "it names no pod",
        Owner::Pod(_) => "its pod has no record",
        Owner::Container(_) => "its container has no record",
        Owner::Either(_) => "its pod or container has no record",
    };
    Some(Candidate::new(object.clone(), reason))
}

/// Returns the records of pods and containers whose object is gone.
#[must_use]
pub fn without_object(objects: &[Object], known: &Known) -> Vec<Candidate> {
    let ids = |kind: ObjectKind| -> BTreeSet<&str> {
        objects.iter().filter(|object| object.kind == kind).map(|object| object.owner.id()).collect()
    };
    let (keepers, layers) = (ids(ObjectKind::Keeper), ids(ObjectKind::WritableLayer));
    let mut candidates = Vec::new();
    for (id, pod) in &known.pods {
        let needs_keeper = match pod.state {
            PodState::Ready { .. } | PodState::Lost => true,
            // A daemon that runs is releasing it.
            PodState::NotReady { released } => !released && !known.daemon_runs,
            PodState::Creating => false,
        };
        if needs_keeper && !(keepers.contains(id.as_str()) && pod.this_boot) {
            let reason = if pod.this_boot { "its keeper has ended" } else { "it ran before the last reboot" };
            candidates.push(record(ObjectKind::PodRecord, Owner::Pod(id.clone()), reason));
        }
    }
    for (id, container) in &known.containers {
        if known.creating.contains(id) || container.state == ContainerState::Creating {
            continue;
        }
        let reason = match (known.pods.contains_key(&container.pod), layers.contains(id.as_str())) {
            (false, _) => "its pod has no record",
            (true, false) => "its writable layer is gone",
            (true, true) => continue,
        };
        candidates.push(record(ObjectKind::ContainerRecord, Owner::Container(id.clone()), reason));
    }
    candidates
}

fn record(kind: ObjectKind, owner: Owner, reason: &str) -> Candidate {
    let name = owner.id().to_owned();
    Candidate::new(Object { kind, owner, name, place: Place::Record, certain: true }, reason)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::known::{KnownContainer, KnownPod};
    use super::*;

    fn object(kind: ObjectKind, owner: Owner) -> Object {
        Object::at(kind, owner, PathBuf::from("/x"))
    }

    fn pod(state: PodState) -> KnownPod {
        KnownPod { state, this_boot: true }
    }

    fn known(state: PodState) -> Known {
        Known { pods: [("a".to_owned(), pod(state))].into(), ..Known::default() }
    }

    fn reasons(candidates: &[Candidate]) -> Vec<&str> {
        candidates.iter().map(|candidate| candidate.reason.as_str()).collect()
    }

    #[test]
    fn objects_of_known_pods_are_no_leftovers() {
        let of = |id: &str| {
            [ObjectKind::Keeper, ObjectKind::Link, ObjectKind::PodFolder]
                .map(|kind| object(kind, Owner::Pod(id.to_owned())))
        };
        let ready = known(PodState::Ready { pause_pid: 7 });
        assert_eq!(unowned(&of("a"), &ready), []);
        assert_eq!(reasons(&unowned(&of("b"), &ready)), ["its pod has no record"; 3]);
        let creating = Known { creating: ["b".to_owned()].into(), ..ready };
        assert_eq!(unowned(&of("b"), &creating), []);
        let released = known(PodState::NotReady { released: true });
        assert_eq!(reasons(&unowned(&of("a"), &released)), ["its pod was released"; 2], "the folder stays");
    }

    #[test]
    fn an_uncertain_object_counts_if_another_one_shows_its_daemon() {
        let pin = |id: &str| Object { certain: false, ..object(ObjectKind::Pin, Owner::Pod(id.to_owned())) };
        let objects = [pin("a"), pin("b"), object(ObjectKind::Address, Owner::Pod("b".to_owned()))];
        let found = unowned(&objects, &Known::default());
        assert_eq!(found.iter().map(|found| found.object.owner.id()).collect::<Vec<_>>(), ["b", "b"]);
    }

    #[test]
    fn a_cgroup_belongs_to_a_pod_or_to_a_container() {
        let mut known = known(PodState::Lost);
        let container =
            KnownContainer { pod: "a".to_owned(), state: ContainerState::Running { pid: 7, started_at: 0 } };
        known.containers.insert("c".to_owned(), container);
        let cgroups = ["a", "c", "d"].map(|id| object(ObjectKind::Cgroup, Owner::Either(id.to_owned())));
        assert_eq!(reasons(&unowned(&cgroups, &known)), ["its pod or container has no record"]);
    }

    #[test]
    fn records_without_their_object_are_found() {
        let keeper = object(ObjectKind::Keeper, Owner::Pod("a".to_owned()));
        for (state, daemon_runs, expected) in [
            (PodState::Ready { pause_pid: 7 }, true, 1),
            (PodState::Lost, false, 1),
            (PodState::NotReady { released: false }, true, 0),
            (PodState::NotReady { released: false }, false, 1),
            (PodState::NotReady { released: true }, false, 0),
        ] {
            let known = Known { daemon_runs, ..known(state.clone()) };
            assert_eq!(without_object(&[], &known).len(), expected, "{state:?} {daemon_runs}");
            assert_eq!(without_object(std::slice::from_ref(&keeper), &known), [], "{state:?}");
        }
        let mut known = known(PodState::NotReady { released: true });
        for (id, pod) in [("c", "a"), ("d", "b"), ("e", "a")] {
            let state = ContainerState::Created { pid: 7 };
            known.containers.insert(id.to_owned(), KnownContainer { pod: pod.to_owned(), state });
        }
        let layers = ["c", "d"].map(|id| object(ObjectKind::WritableLayer, Owner::Container(id.to_owned())));
        let found = without_object(&layers, &known);
        assert_eq!(reasons(&found), ["its pod has no record", "its writable layer is gone"]);
    }
}
