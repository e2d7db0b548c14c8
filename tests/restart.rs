//! The daemon may die at any moment: its pods do not notice, and the next daemon knows them. Runs as root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails says so by panicking")]

mod support;

use std::fs;
use std::time::{Duration, Instant};

use berth_proto::v1::*;
use support::{Berth, shell, sleeper};

#[tokio::test(flavor = "multi_thread")]
async fn pods_and_logs_go_on_without_the_daemon() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let ip = berth.pod_status(&pod).await.network.unwrap().ip;
    let ticker = berth.run(&pod, shell("ticker", "while true; do echo tick; sleep 0.05; done")).await;
    let ending = berth.run(&pod, shell("ending", "sleep 1; echo bye; exit 9")).await;
    let waiting = berth.try_create(&pod, sleeper("waiting")).await.unwrap();
    berth.kill();
    let log = berth.path("logs/pod/ticker.log");
    let before = fs::metadata(&log).unwrap().len();
    let record = berth.path(&format!("root/containers/{ending}/exit.json"));
    let until = Instant::now() + support::PATIENCE;
    // The log grows and the end is recorded without a daemon.
    while fs::metadata(&log).unwrap().len() == before || !record.exists() {
        assert!(Instant::now() < until, "{log:?} does not grow, or there is no {record:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    berth.restart().await;

    assert_eq!(berth.pod_status(&pod).await.state(), PodSandboxState::SandboxReady);
    assert_eq!(berth.pod_status(&pod).await.network.unwrap().ip, ip);
    assert_eq!(berth.status(&ticker).await.state(), ContainerState::ContainerRunning);
    let ended = berth.status(&ending).await;
    assert_eq!((ended.state(), ended.exit_code), (ContainerState::ContainerExited, 9));
    let age = Duration::from_nanos(u64::try_from(ended.finished_at - ended.started_at).unwrap());
    assert!(age > Duration::from_millis(900) && age < support::PATIENCE, "{age:?}");
    assert_eq!(support::text_of(&fs::read_to_string(&ended.log_path).unwrap()), "bye\n");
    assert_eq!(berth.sh(&ticker, "echo still here").await, "still here");
    berth.try_start_container(&waiting).await.unwrap();
    berth.stop_container(&waiting, 10).await;
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_moment_leaves_nothing_half() {
    let mut berth = Berth::start().await;
    for round in 0..8_u32 {
        let mut config = berth.pod_config("victim");
        config.metadata.as_mut().unwrap().attempt = round;
        let mut client = berth.runtime.clone();
        let running = tokio::spawn(async move {
            let request = RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
            let pod = client.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
            let request = CreateContainerRequest {
                pod_sandbox_id: pod,
                config: Some(sleeper("c")),
                sandbox_config: None,
            };
            client.create_container(request).await
        });
        tokio::time::sleep(Duration::from_millis(u64::from(round) * 7)).await;
        berth.kill();
        drop(running.await);
        berth.restart().await;
        // What is there is whole: it can be used.
        let list = berth.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap();
        for pod in list.into_inner().items {
            assert_eq!(pod.state(), PodSandboxState::SandboxReady, "round {round}");
            let (exit, _) = berth.script(&pod.id, &format!("check-{round}"), "exit 0").await;
            assert_eq!(exit, 0);
            berth.remove_pod(&pod.id).await;
        }
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keeper_that_is_killed_takes_its_pod_down_and_no_other() {
    let mut berth = Berth::start().await;
    let lost = berth.run_pod(berth.pod_config("lost")).await;
    let other = berth.run_pod(berth.pod_config("other")).await;
    let container = berth.run(&lost, sleeper("c")).await;
    let survivor = berth.run(&other, sleeper("c")).await;
    support::leftovers::end_keepers_of(&lost);
    let status = berth.ended(&container).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (255, "ContainerStatusUnknown"));
    assert_eq!(berth.pod_status(&lost).await.state(), PodSandboxState::SandboxNotready);
    assert_eq!(berth.status(&survivor).await.state(), ContainerState::ContainerRunning);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
