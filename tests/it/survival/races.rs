//! Concurrent calls: each is answered, and the final state is consistent.

use std::time::Duration;

use berth_proto::v1::*;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Berth, shell, sleeper};
use crate::survival::{
    answered, keepers_of, listed, pause_of, pods, signal_keeper, until, wait_until_not_ready,
};

/// Waits between two calls, with a different time in each round.
async fn pause_between(round: u32) {
    match round % 8 {
        0 => {}
        some => tokio::time::sleep(Duration::from_micros(u64::from(some) * 700)).await,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_start_and_remove_are_answered_and_leave_nothing() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    for round in 0..30 {
        let id = berth.try_create(&pod, sleeper(&format!("c{round}"))).await.unwrap();
        let (mut starter, mut remover) = (berth.runtime.clone(), berth.runtime.clone());
        let start = StartContainerRequest { container_id: id.clone() };
        let remove = RemoveContainerRequest { container_id: id.clone() };
        let start = tokio::spawn(async move { starter.start_container(start).await });
        pause_between(round).await;
        let remove = tokio::spawn(async move { remover.remove_container(remove).await });
        answered("RemoveContainer", remove).await.unwrap().unwrap();
        let _whichever_came_first = answered("StartContainer", start).await.unwrap();
        assert_eq!(listed(&mut berth, &id).await, None, "round {round}");
    }
    berth.remove_pod(&pod).await;
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_create_and_stop_leave_no_startable_container() {
    let mut berth = Berth::start().await;
    for round in 0..16_u32 {
        let pod = berth.run_pod(berth.pod_config(&format!("pod{round}"))).await;
        let mut making = Vec::new();
        for name in ["a", "b"] {
            let mut client = berth.runtime.clone();
            let request = CreateContainerRequest {
                pod_sandbox_id: pod.clone(),
                config: Some(sleeper(name)),
                sandbox_config: None,
            };
            making.push(tokio::spawn(async move {
                let id = client.create_container(request).await?.into_inner().container_id;
                client.start_container(StartContainerRequest { container_id: id }).await
            }));
        }
        tokio::time::sleep(Duration::from_millis(u64::from(round) * 3)).await;
        answered("StopPodSandbox", berth.stop_pod(&pod)).await;
        for made in making {
            let _whichever_came_first = answered("CreateContainer", made).await.unwrap();
        }
        let list =
            berth.runtime.list_containers(ListContainersRequest::default()).await.unwrap().into_inner();
        for container in list.containers {
            assert_eq!(container.state(), ContainerState::ContainerExited, "round {round}");
        }
        until("the keeper of the stopped pod is left", || keepers_of(&pod).is_empty()).await;
        answered("RemovePodSandbox", berth.remove_pod(&pod)).await;
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_remove_during_an_exit_removes_the_container() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    for round in 0..30_u32 {
        let id = berth.run(&pod, shell(&format!("c{round}"), "sleep 0.02; exit 3")).await;
        tokio::time::sleep(Duration::from_millis(15 + u64::from(round % 10))).await;
        answered("RemoveContainer", berth.remove_container(&id)).await;
        assert_eq!(listed(&mut berth, &id).await, None, "round {round}");
        assert!(!berth.path(&format!("root/containers/{id}")).exists(), "round {round}");
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_keeper_of_a_pod_that_is_not_ready_is_noticed() {
    let mut berth = Berth::start().await;
    for round in 0..3_u32 {
        let pod = berth.run_pod(berth.pod_config(&format!("pod{round}"))).await;
        let runs = berth.run(&pod, sleeper("runs")).await;
        let waits = berth.try_create(&pod, sleeper("waits")).await.unwrap();
        kill_process(pause_of(&mut berth, &pod).await, Signal::KILL).unwrap();
        if round > 0 {
            wait_until_not_ready(&mut berth, &pod).await;
        }
        signal_keeper(&pod, Signal::KILL);
        for container in [&runs, &waits] {
            let status = berth.wait_exited(container).await;
            assert_eq!(status.exit_code, 255, "{status:?}");
        }
        assert_eq!(berth.pod_status(&pod).await.state(), PodSandboxState::SandboxNotready);
        if round == 2 {
            berth.restart().await;
        }
        answered("StopPodSandbox", berth.stop_pod(&pod)).await;
        answered("RemovePodSandbox", berth.remove_pod(&pod)).await;
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keeper_killed_during_pod_creation_leaves_no_ready_pod() {
    let mut berth = Berth::start().await;
    for round in 0..24_u32 {
        let config = berth.pod_config(&format!("pod{round}"));
        let mut client = berth.runtime.clone();
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        let run = tokio::spawn(async move { client.run_pod_sandbox(request).await });
        let folder = berth.path("run/pods");
        let mut keepers = Vec::new();
        while keepers.is_empty() && !run.is_finished() {
            let names = std::fs::read_dir(&folder).unwrap().flatten();
            keepers = names.flat_map(|name| keepers_of(name.file_name().to_str().unwrap())).collect();
        }
        tokio::time::sleep(Duration::from_millis(u64::from(round / 2))).await;
        for keeper in keepers {
            // The keeper can have exited with a failed run.
            let _gone = kill_process(Pid::from_raw(keeper).unwrap(), Signal::KILL);
        }
        if let Ok(made) = answered("RunPodSandbox", run).await.unwrap() {
            let pod = made.into_inner().pod_sandbox_id;
            wait_until_not_ready(&mut berth, &pod).await;
            answered("RemovePodSandbox", berth.remove_pod(&pod)).await;
        }
        assert_eq!(pods(&mut berth).await, [], "round {round}");
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
