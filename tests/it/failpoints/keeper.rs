//! The keeper of the pod dies while the daemon is at a step of an operation.

use std::time::{Duration, Instant};

use berth::operation::Step;
use berth_proto::v1::*;
use tonic::Status;

use super::scene::{Point, Scene};
use super::victim::Victim;
use super::{CONTAINERS, PODS, steps_of};
use crate::support::PATIENCE;

/// The steps of RunPodSandbox at which the pod has no keeper yet.
const BEFORE_THE_KEEPER: [&str; 4] = ["Waiting", "Intent", "Cgroup", "Keeper"];

#[tokio::test(flavor = "multi_thread")]
async fn the_keeper_dies_in_an_operation_on_a_pod() {
    walk(&PODS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keeper_dies_in_an_operation_on_a_container() {
    walk(&CONTAINERS).await;
}

async fn walk(operations: &[&'static str]) {
    let mut scene = Scene::new("").await;
    for step in operations.iter().copied().flat_map(steps_of) {
        if step.operation == "RunPodSandbox" && BEFORE_THE_KEEPER.contains(&step.id)
            || step.operation == "RemovePodSandbox" && !matches!(step.id, "Waiting" | "Stop")
            || step.operation == "StopPodSandbox" && step.id == "Answer"
        {
            // No keeper runs at this step: it is not started yet, or has ended.
            continue;
        }
        let victim = Victim::of(&mut scene, step.operation).await;
        scene.arm(step);
        let call = victim.call(&scene, step);
        let answer = scene.keeper_dies(step, victim.pod.as_deref(), call).await;
        check(&mut scene, step, answer).await;
        scene.end_step(step).await;
    }
    scene.end().await;
}

async fn check(scene: &mut Scene, step: Step, answer: Result<(), Status>) {
    match (step.operation, step.id) {
        // The end of a pod or a container needs no keeper.
        ("StopPodSandbox" | "RemovePodSandbox" | "StopContainer" | "RemoveContainer", _) => answer.unwrap(),
        // The operation is done.
        (_, "Answer") | ("CreateContainer", "Created") | ("StartContainer", "Started") => answer.unwrap(),
        // A failed call leaves no object. An object that was made before the daemon has noticed is lost.
        (operation, id) => {
            println!("{operation}.{id}: {answer:?}");
            let (pods, containers) = (scene.pods().await, scene.containers().await);
            let made = usize::from(answer.is_ok());
            let expected = match operation {
                "RunPodSandbox" => (made, 0),
                "CreateContainer" => (1, made),
                _ => (1, 1),
            };
            assert_eq!((pods.len(), containers.len()), expected, "{step:?}: {pods:?} {containers:?}");
            assert!(operation != "StartContainer" || answer.is_err(), "{step:?}");
        }
    }
    assert_lost(scene, step).await;
}

/// The pods are not ready, and their containers have ended.
pub(super) async fn assert_lost(scene: &mut Scene, point: impl Into<Point>) {
    let point = point.into();
    let until = Instant::now() + PATIENCE;
    loop {
        let (pods, containers) = (scene.pods().await, scene.containers().await);
        let lost = pods.iter().all(|pod| pod.state() == PodSandboxState::SandboxNotready)
            && containers.iter().all(|container| container.state() == ContainerState::ContainerExited);
        if lost {
            return;
        }
        assert!(Instant::now() < until, "{point}: {pods:?} {containers:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
