//! The daemon dies at a step of a checkpoint or of a restore.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use berth::operation::{CreateStep, Step};
use berth_proto::v1::*;
use tonic::{Code, Status};

use super::scene::{Call, Point, Scene, begin};
use super::steps_of;
use crate::checkpoint::{assert_goes_on, counter, criu, wait_for};
use crate::support::{PATIENCE, code};

async fn scene() -> Scene {
    Scene::new(&format!("criu_path = \"{}\"\n", criu().display())).await
}

/// Runs a pod with a container that counts.
async fn counting(scene: &mut Scene) -> (String, String) {
    let name = scene.name();
    let pod = scene.berth.run_pod(scene.berth.pod_config(&name)).await;
    let container = scene.berth.run(&pod, counter("c")).await;
    wait_for(&mut scene.berth, &container, "test -e /tmp/counter").await;
    (pod, container)
}

/// The daemon that has just started removes the work folders of an interrupted checkpoint.
async fn wait_until_no_work_is_left(scene: &Scene, point: Point) {
    let until = Instant::now() + PATIENCE;
    let exists = || {
        ["root/containers", "root/pods"].iter().any(|kind| {
            let entries = fs::read_dir(scene.berth.disk_path(kind)).unwrap().flatten();
            entries.into_iter().any(|entry| entry.path().join("checkpoint").exists())
        })
    };
    while exists() {
        assert!(Instant::now() < until, "{point}: a work folder is not removed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn checkpoint_container(scene: &Scene, container: &str, archive: &Path) -> Call {
    let mut client = scene.berth.runtime.clone();
    let location = archive.display().to_string();
    let request = CheckpointContainerRequest { container_id: container.to_owned(), location, timeout: 0 };
    begin(async move { client.checkpoint_container(request).await })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_dies_in_the_checkpoint_of_a_container() {
    let mut scene = scene().await;
    for step in steps_of("CheckpointContainer") {
        let (_, container) = counting(&mut scene).await;
        let archive = scene.berth.path(&format!("{}.tar", step.id));
        scene.arm(step);
        let call = checkpoint_container(&scene, &container, &archive);
        scene.daemon_dies(step, call).await;
        assert_goes_on(&mut scene.berth, &container).await;
        wait_until_no_work_is_left(&scene, step.into()).await;
        let again = checkpoint_container(&scene, &container, &archive).await.unwrap();
        // The file has its name only when it is complete.
        assert_eq!(code(again), if step.id == "Answer" { Code::AlreadyExists } else { Code::Ok }, "{step:?}");
        assert_goes_on(&mut scene.berth, &container).await;
        wait_until_no_work_is_left(&scene, step.into()).await;
        scene.end_step(step).await;
    }
    scene.end().await;
}

fn checkpoint_pod(scene: &Scene, pod: &str, container: &str, folder: &Path) -> Call {
    let mut client = scene.berth.runtime.clone();
    let request = CheckpointPodRequest {
        pod_sandbox_id: pod.to_owned(),
        output_path: folder.display().to_string(),
        container_ids: vec![container.to_owned()],
        ..CheckpointPodRequest::default()
    };
    begin(async move { client.checkpoint_pod(request).await })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_dies_in_the_checkpoint_of_a_pod() {
    let mut scene = scene().await;
    for step in steps_of("CheckpointPod") {
        let (pod, container) = counting(&mut scene).await;
        let folder = scene.berth.path(step.id);
        fs::create_dir(&folder).unwrap();
        scene.arm(step);
        let call = checkpoint_pod(&scene, &pod, &container, &folder);
        scene.daemon_dies(step, call).await;
        assert_goes_on(&mut scene.berth, &container).await;
        wait_until_no_work_is_left(&scene, step.into()).await;
        let files = fs::read_dir(&folder).unwrap().count();
        assert_eq!((files > 0, folder.join("pod.json").exists()), (step.id == "Answer", step.id == "Answer"));
        let again = checkpoint_pod(&scene, &pod, &container, &folder).await.unwrap();
        let expected = if files > 0 { Code::FailedPrecondition } else { Code::Ok };
        assert_eq!(code(again), expected, "{step:?}");
        assert_goes_on(&mut scene.berth, &container).await;
        scene.end_step(step).await;
    }
    scene.end().await;
}

/// Takes a checkpoint of a pod that is then removed, and a copy of it whose container cannot be read.
async fn checkpoints(scene: &mut Scene) -> (PathBuf, PathBuf) {
    let (pod, container) = counting(scene).await;
    let (good, bad) = (scene.berth.path("good"), scene.berth.path("bad"));
    for folder in [&good, &bad] {
        fs::create_dir(folder).unwrap();
        checkpoint_pod(scene, &pod, &container, folder).await.unwrap().unwrap();
    }
    let archive = bad.join("container-0.tar");
    let length = fs::metadata(&archive).unwrap().len();
    fs::File::options().write(true).open(archive).unwrap().set_len(length / 2).unwrap();
    scene.berth.remove_pod(&pod).await;
    (good, bad)
}

fn restore_request(scene: &Scene, folder: &Path, name: &str) -> RestorePodRequest {
    RestorePodRequest {
        checkpoint_path: folder.display().to_string(),
        config: Some(scene.berth.pod_config(name)),
        container_configs: vec![counter("c")],
        ..RestorePodRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_dies_in_the_restore_of_a_pod() {
    let mut scene = scene().await;
    let (good, bad) = checkpoints(&mut scene).await;
    for step in steps_of("RestorePod") {
        let name = scene.name();
        let folder = if step.id == "Undo" { &bad } else { &good };
        let request = restore_request(&scene, folder, &name);
        scene.arm(step);
        let mut client = scene.berth.runtime.clone();
        let call = begin(async move { client.restore_pod(request).await });
        scene.daemon_dies(step, call).await;
        let request = restore_request(&scene, &good, &name);
        let pod = match step.id {
            "Answer" => {
                let error = scene.berth.runtime.restore_pod(request).await.unwrap_err();
                assert_eq!(error.code(), Code::AlreadyExists, "{step:?}: {error}");
                scene.pods().await.remove(0).id
            }
            _ => restore_again(&mut scene, request, step).await,
        };
        let containers = scene.containers().await;
        assert_eq!(containers.len(), 1, "{step:?}: {containers:?}");
        assert_eq!(containers[0].state(), ContainerState::ContainerCreated, "{step:?}");
        scene.berth.try_start_container(&containers[0].id).await.unwrap();
        assert_goes_on(&mut scene.berth, &containers[0].id).await;
        scene.assert_works(step, &pod).await;
        scene.end_step(step).await;
    }
    scene.end().await;
}

/// The next daemon removes the half of the pod that exists; until then the name is in use.
async fn restore_again(scene: &mut Scene, request: RestorePodRequest, step: Step) -> String {
    let until = Instant::now() + PATIENCE;
    loop {
        let error: Status = match scene.berth.runtime.restore_pod(request.clone()).await {
            Ok(restored) => return restored.into_inner().pod_sandbox_id,
            Err(error) => error,
        };
        assert_eq!(error.code(), Code::AlreadyExists, "{step:?}: {error}");
        assert!(Instant::now() < until, "{step:?}: {error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The step of CreateContainer that only a container from a checkpoint reaches.
#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_dies_before_a_container_receives_a_checkpoint() {
    let mut scene = scene().await;
    let step = Step::from(CreateStep::Checkpoint);
    let (pod, container) = counting(&mut scene).await;
    let archive = scene.berth.path("checkpoint.tar");
    checkpoint_container(&scene, &container, &archive).await.unwrap().unwrap();
    let mut config = counter("restored");
    config.image = Some(ImageSpec { image: archive.display().to_string(), ..ImageSpec::default() });
    let request =
        CreateContainerRequest { pod_sandbox_id: pod.clone(), config: Some(config), sandbox_config: None };
    scene.arm(step);
    let (mut client, again) = (scene.berth.runtime.clone(), request.clone());
    let call = begin(async move { client.create_container(request).await });
    scene.daemon_dies(step, call).await;
    assert_eq!(scene.containers().await.len(), 1, "{step:?}");
    let id = scene.berth.runtime.create_container(again).await.unwrap().into_inner().container_id;
    scene.berth.try_start_container(&id).await.unwrap();
    assert_goes_on(&mut scene.berth, &id).await;
    assert_goes_on(&mut scene.berth, &container).await;
    scene.end_step(step).await;
    scene.end().await;
}
