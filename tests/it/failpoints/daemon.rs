//! The daemon dies at a step of an operation on pods or containers.

use std::path::Path;

use berth::operation::Step;
use berth_proto::v1::*;
use tonic::Code;

use super::scene::{Scene, begin};
use super::victim::Victim;
use super::{CONTAINERS, PODS, steps_of};
use crate::support::{code, sleeper};

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_dies_in_an_operation_on_a_pod() {
    walk(&PODS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_dies_in_an_operation_on_a_container() {
    walk(&CONTAINERS).await;
}

async fn walk(operations: &[&'static str]) {
    let mut scene = Scene::new("").await;
    for step in operations.iter().copied().flat_map(steps_of) {
        let victim = Victim::of(&mut scene, step.operation).await;
        scene.arm(step);
        let call = victim.call(&scene, step);
        scene.daemon_dies(step, call).await;
        check(&mut scene, &victim, step).await;
        scene.end_step(step).await;
    }
    scene.end().await;
}

/// Checks what the next daemon shows, and repeats the call.
async fn check(scene: &mut Scene, victim: &Victim, step: Step) {
    match step.operation {
        "RunPodSandbox" => run_pod(scene, victim, step).await,
        "StopPodSandbox" => stop_pod(scene, victim, step).await,
        "RemovePodSandbox" => remove_pod(scene, victim, step).await,
        "CreateContainer" => create(scene, victim, step).await,
        "StartContainer" => start(scene, victim, step).await,
        "StopContainer" => stop(scene, victim, step).await,
        "RemoveContainer" => remove(scene, victim, step).await,
        other => panic!("no check of {other}"),
    }
}

/// The pod is complete, or there is none.
async fn run_pod(scene: &mut Scene, victim: &Victim, step: Step) {
    let found = scene.pods().await;
    let is_complete = matches!(step.id, "Plugins" | "Answer");
    assert_eq!(found.len(), usize::from(is_complete), "{step:?}: {found:?}");
    let config = scene.berth.pod_config(&victim.name);
    let again = scene.berth.try_run_pod(config).await;
    let pod = match found.into_iter().next() {
        Some(pod) => {
            let error = again.unwrap_err();
            assert_eq!(error.code(), Code::AlreadyExists, "{step:?}: {error}");
            assert!(error.message().contains(&pod.id), "{step:?}: {error}");
            pod.id
        }
        None => again.unwrap(),
    };
    scene.assert_works(step, &pod).await;
}

async fn stop_pod(scene: &mut Scene, victim: &Victim, step: Step) {
    let states = (
        scene.berth.pod_status(victim.pod()).await.state(),
        scene.berth.status(victim.container()).await.state(),
    );
    match step.id {
        "Waiting" => {
            let running = (PodSandboxState::SandboxReady, ContainerState::ContainerRunning);
            assert_eq!(states, running, "{step:?}");
        }
        "Answer" => {
            let stopped = (PodSandboxState::SandboxNotready, ContainerState::ContainerExited);
            assert_eq!(states, stopped, "{step:?}");
        }
        // The call is not answered: either is right.
        _ => {}
    }
    scene.berth.stop_pod(victim.pod()).await;
    assert_eq!(scene.berth.pod_status(victim.pod()).await.state(), PodSandboxState::SandboxNotready);
    let status = scene.berth.status(victim.container()).await;
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 137), "{step:?}");
}

async fn remove_pod(scene: &mut Scene, victim: &Victim, step: Step) {
    if matches!(step.id, "Plugins" | "Answer") {
        assert!(scene.pods().await.is_empty(), "{step:?}");
    }
    scene.berth.remove_pod(victim.pod()).await;
    assert!(scene.pods().await.is_empty(), "{step:?}");
}

/// The container is complete, or there is none.
async fn create(scene: &mut Scene, victim: &Victim, step: Step) {
    let found = scene.containers().await;
    let is_complete = matches!(step.id, "Created" | "Answer");
    assert_eq!(found.len(), usize::from(is_complete), "{step:?}: {found:?}");
    let again = scene.berth.try_create(victim.pod(), sleeper("c")).await;
    let id = match found.into_iter().next() {
        Some(container) => {
            assert_eq!(container.state(), ContainerState::ContainerCreated, "{step:?}");
            let error = again.unwrap_err();
            assert_eq!(error.code(), Code::AlreadyExists, "{step:?}: {error}");
            assert!(error.message().contains(&container.id), "{step:?}: {error}");
            container.id
        }
        None => again.unwrap(),
    };
    scene.berth.try_start_container(&id).await.unwrap();
    assert_eq!(scene.berth.sh(&id, "echo works").await, "works", "{step:?}");
    scene.assert_works(step, victim.pod()).await;
}

async fn start(scene: &mut Scene, victim: &Victim, step: Step) {
    let runs = matches!(step.id, "Started" | "Answer");
    let state = if runs { ContainerState::ContainerRunning } else { ContainerState::ContainerCreated };
    assert_eq!(scene.berth.status(victim.container()).await.state(), state, "{step:?}");
    let again = scene.berth.try_start_container(victim.container()).await;
    assert_eq!(code(again), if runs { Code::FailedPrecondition } else { Code::Ok }, "{step:?}");
    assert_eq!(scene.berth.sh(victim.container(), "echo works").await, "works", "{step:?}");
    scene.assert_works(step, victim.pod()).await;
}

async fn stop(scene: &mut Scene, victim: &Victim, step: Step) {
    let ended = matches!(step.id, "Plugins" | "Answer");
    let state = if ended { ContainerState::ContainerExited } else { ContainerState::ContainerRunning };
    assert_eq!(scene.berth.status(victim.container()).await.state(), state, "{step:?}");
    scene.berth.stop_container(victim.container(), 100).await;
    let status = scene.berth.status(victim.container()).await;
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 0), "{step:?}");
    scene.assert_works(step, victim.pod()).await;
}

async fn remove(scene: &mut Scene, victim: &Victim, step: Step) {
    if matches!(step.id, "Removed" | "Answer") {
        assert!(scene.containers().await.is_empty(), "{step:?}");
    }
    scene.berth.remove_container(victim.container()).await;
    assert!(scene.containers().await.is_empty(), "{step:?}");
    scene.assert_works(step, victim.pod()).await;
}

/// The step that only a container of an OCI runtime reaches.
#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_dies_before_an_oci_runtime_deletes_a_container() {
    const RUNC: &str = "/usr/sbin/runc";
    assert!(Path::new(RUNC).exists(), "{RUNC} is missing: apt-get install runc");
    let mut scene = Scene::new(&format!("[handlers.runc]\npath = \"{RUNC}\"\n")).await;
    let step = Step::from(berth::operation::RemoveStep::Runtime);
    let config = scene.berth.pod_config("victim");
    let request = RunPodSandboxRequest { config: Some(config), runtime_handler: "runc".to_owned() };
    let pod = scene.berth.runtime.run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id;
    let id = scene.berth.run(&pod, sleeper("c")).await;
    scene.arm(step);
    let mut client = scene.berth.runtime.clone();
    let request = RemoveContainerRequest { container_id: id.clone() };
    let call = begin(async move { client.remove_container(request).await });
    scene.daemon_dies(step, call).await;
    scene.berth.remove_container(&id).await;
    let state = scene.berth.path("run/handlers/runc").join(&id);
    assert!(!state.exists(), "{}", state.display());
    scene.assert_works(step, &pod).await;
    scene.end_step(step).await;
    scene.end().await;
}
