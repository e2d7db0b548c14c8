//! An exhaustive model check of a pod with one container. It explores kubelet calls in every order, the steps
//! of the operations in every order, the death of the daemon between any two steps, a keeper that is killed
//! or stopped, and a disk that accepts facts late. The states change through the functions that the daemon
//! uses. The daemon's actions between two state changes are modelled step by step: [`operations`] has the
//! operations, [`steps`] everything else that can happen, [`world`] the system that they act on.
//!
//! An invariant in every state: a reported exit code is the one with which the process exited. Invariants in
//! every state without a possible internal step: no operation is stuck, reported states are true, and no
//! process runs that is not reported.

mod operations;
mod steps;
mod world;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use world::{Budget, System};

/// More states than any search visits. A search that reaches this limit would not be exhaustive.
const MAX_STATES: usize = 3_000_000;

/// Hashes a system state. Two different states collide with a probability of states^2 / 2^64.
fn fingerprint(system: &System) -> u64 {
    let mut hasher = DefaultHasher::new();
    system.hash(&mut hasher);
    hasher.finish()
}

/// Visits every state that is reachable from the first one. Returns their number, or the shortest path to a
/// violation.
fn search(first: System) -> Result<usize, String> {
    let mut predecessors: HashMap<u64, (u64, String)> = HashMap::new();
    let first_key = fingerprint(&first);
    predecessors.insert(first_key, (0, String::new()));
    let mut waiting = VecDeque::from([(first_key, first)]);
    while let Some((key, system)) = waiting.pop_front() {
        let path = |last: String| {
            let mut path = vec![last];
            let mut at = key;
            while at != first_key {
                let (before, action) = &predecessors[&at];
                path.push(action.clone());
                at = *before;
            }
            path.reverse();
            path.join("\n  ")
        };
        let internal = steps::internal(&system);
        if let Some(violation) = system.violation(internal.is_empty()) {
            return Err(format!("{violation}:\n  {}\n{system:#?}", path("here".to_owned())));
        }
        for (action, next) in internal.into_iter().chain(steps::external(&system)) {
            let next_key = fingerprint(&next);
            if let Entry::Vacant(unseen) = predecessors.entry(next_key) {
                unseen.insert((key, action));
                waiting.push_back((next_key, next));
            }
        }
        assert!(predecessors.len() < MAX_STATES, "too many states");
    }
    Ok(predecessors.len())
}

fn check(budget: Budget) {
    match search(System::new(budget)) {
        Ok(states) => println!("{budget:?}: {states} states"),
        Err(violation) => panic!("{violation}"),
    }
}

const ONE_OF_EACH: Budget = Budget {
    create: 1,
    start: 1,
    stop: 1,
    remove: 1,
    stop_pod: 1,
    remove_pod: 1,
    crashes: 0,
    keeper_kills: 0,
    keeper_stops: 0,
    pause_kills: 0,
    refusals: 0,
};

#[test]
fn calls_in_every_order() {
    check(Budget { start: 2, ..ONE_OF_EACH });
}

#[test]
fn with_a_daemon_that_is_killed_anywhere() {
    check(Budget { crashes: 2, stop: 0, ..ONE_OF_EACH });
    check(Budget { crashes: 1, refusals: 1, stop: 0, ..ONE_OF_EACH });
}

#[test]
fn with_a_keeper_that_is_killed_anywhere() {
    check(Budget { keeper_kills: 1, crashes: 1, stop: 0, ..ONE_OF_EACH });
}

#[test]
fn with_a_keeper_that_is_stopped_anywhere() {
    check(Budget { keeper_stops: 1, start: 2, remove_pod: 0, ..ONE_OF_EACH });
    check(Budget { keeper_stops: 1, crashes: 1, stop: 0, stop_pod: 0, ..ONE_OF_EACH });
}

#[test]
fn with_a_pause_that_is_killed_anywhere() {
    check(Budget { pause_kills: 1, crashes: 1, stop: 0, ..ONE_OF_EACH });
}
