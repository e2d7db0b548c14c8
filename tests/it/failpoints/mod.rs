//! The daemon and the keeper of a pod are killed at every step of every operation: no record is lost that was
//! reported to a client, other pods run on, the repeated call succeeds, and nothing is left. Runs as root.
//!
//! The steps are those of the tables `berth::operation::Step::ALL`, `berth_runtime::keeper_step::KeeperStep::ALL` and
//! `berth_image::PullStep::ALL`. A step that is not reached fails the test.
//!
//! * [`scene`]: a daemon with a pod that must survive, and the failpoints
//! * [`victim`]: the pod and the container of an operation, and its call
//! * [`daemon`]: the daemon dies in an operation on pods and containers; [`checkpoints`], [`pulls`]: in the other ones
//! * [`keeper`]: the keeper dies in an operation of the daemon
//! * [`keeper_steps`]: the keeper, or the daemon, dies at a step of the keeper

mod checkpoints;
mod daemon;
mod keeper;
mod keeper_steps;
mod pulls;
mod scene;
mod victim;

use std::collections::BTreeSet;

use berth::operation::Step;

/// The operations on pods.
const PODS: [&str; 3] = ["RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"];
/// The operations on containers.
const CONTAINERS: [&str; 4] = ["CreateContainer", "StartContainer", "StopContainer", "RemoveContainer"];
/// The operations of checkpoints.
const CHECKPOINTS: [&str; 3] = ["CheckpointContainer", "CheckpointPod", "RestorePod"];

/// Steps of operations on containers that only some containers reach: one from a checkpoint, one of an OCI runtime.
const SPECIAL: [(&str, &str); 2] = [("CreateContainer", "Checkpoint"), ("RemoveContainer", "Runtime")];

/// Returns the steps of an operation that every pod or container reaches.
fn steps_of(operation: &'static str) -> impl Iterator<Item = Step> {
    let of_operation = Step::ALL.iter().filter(move |step| step.operation == operation);
    of_operation.filter(|step| !SPECIAL.contains(&(step.operation, step.id))).copied()
}

#[test]
fn every_operation_is_walked() {
    let walked = [&PODS[..], &CONTAINERS, &CHECKPOINTS].concat();
    let all: BTreeSet<&str> = Step::ALL.iter().map(|step| step.operation).collect();
    assert_eq!(all, walked.into_iter().collect());
    for (operation, id) in SPECIAL {
        assert!(Step::ALL.iter().any(|step| (step.operation, step.id) == (operation, id)));
    }
}
