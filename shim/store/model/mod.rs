//! An exhaustive search through what can happen to a pod with one container: calls of a kubelet in every order, the steps of
//! the operations in every order, the end of the daemon between any two of them, a keeper that is killed or stopped, a
//! disk that takes what happened late. The states change by the functions that the daemon itself uses; what the daemon does
//! between two of them is written down here step by step ([`operations`], and [`steps`] for what else can happen), beside the
//! world that it acts on ([`world`]).
//!
//! Always: an exit code that is told is the one that the process ended with. When nothing more can happen by itself: no
//! operation is stuck, what is told is so, and nothing runs that is not told.

mod operations;
mod steps;
mod world;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use world::{Budget, World};

/// More than any of the searches needs: one that reaches it would no longer be exhaustive.
const MOST: usize = 3_000_000;

/// A world as a number: two that are different have the same one by chance only once in 2^64 / states^2.
fn fingerprint(world: &World) -> u64 {
    let mut hasher = DefaultHasher::new();
    world.hash(&mut hasher);
    hasher.finish()
}

/// Goes through every world that can come of one; how many there are, or the shortest way to one that is wrong.
fn search(first: World) -> Result<usize, String> {
    let mut came_from: HashMap<u64, (u64, String)> = HashMap::new();
    let first_key = fingerprint(&first);
    came_from.insert(first_key, (0, String::new()));
    let mut waiting = VecDeque::from([(first_key, first)]);
    while let Some((key, world)) = waiting.pop_front() {
        let way = |last: String| {
            let mut way = vec![last];
            let mut at = key;
            while at != first_key {
                let (before, action) = &came_from[&at];
                way.push(action.clone());
                at = *before;
            }
            way.reverse();
            way.join("\n  ")
        };
        let by_itself = steps::by_themselves(&world);
        if let Some(wrong) = world.wrong(by_itself.is_empty()) {
            return Err(format!("{wrong}:\n  {}\n{world:#?}", way("here".to_owned())));
        }
        for (action, next) in by_itself.into_iter().chain(steps::from_outside(&world)) {
            let next_key = fingerprint(&next);
            if let Entry::Vacant(unseen) = came_from.entry(next_key) {
                unseen.insert((key, action));
                waiting.push_back((next_key, next));
            }
        }
        assert!(came_from.len() < MOST, "too many states");
    }
    Ok(came_from.len())
}

fn holds(budget: Budget) {
    match search(World::new(budget)) {
        Ok(states) => println!("{budget:?}: {states} states"),
        Err(wrong) => panic!("{wrong}"),
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
    holds(Budget { start: 2, ..ONE_OF_EACH });
}

#[test]
fn with_a_daemon_that_is_killed_anywhere() {
    holds(Budget { crashes: 2, stop: 0, ..ONE_OF_EACH });
    holds(Budget { crashes: 1, refusals: 1, stop: 0, ..ONE_OF_EACH });
}

#[test]
fn with_a_keeper_that_is_killed_anywhere() {
    holds(Budget { keeper_kills: 1, crashes: 1, stop: 0, ..ONE_OF_EACH });
}

#[test]
fn with_a_keeper_that_is_stopped_anywhere() {
    holds(Budget { keeper_stops: 1, start: 2, remove_pod: 0, ..ONE_OF_EACH });
    holds(Budget { keeper_stops: 1, crashes: 1, stop: 0, stop_pod: 0, ..ONE_OF_EACH });
}

#[test]
fn with_a_pause_that_is_killed_anywhere() {
    holds(Budget { pause_kills: 1, crashes: 1, stop: 0, ..ONE_OF_EACH });
}
