//! Disks that are full, read-only or frozen. Exits are reported immediately; only operations that need the disk can
//! fail.

use std::fs;
use std::time::Duration;

use berth_proto::v1::*;
use rustix::process::Signal;
use tonic::Code;

use crate::support::disk::Disk;
use crate::support::{Berth, PATIENCE, Setup, shell, sleeper};
use crate::survival::{answered, listed, pods, until};

const DISK: Setup<'static> = Setup { more: "", under: &[], disk: Some(48) };

/// Returns a container that exits with 7 on SIGUSR1.
fn ending(name: &str) -> ContainerConfig {
    shell(name, "trap 'exit 7' USR1; while true; do sleep 0.1; done")
}

struct Pods {
    /// Keeps running.
    stays: (String, String),
    /// Its container exits.
    ends: (String, String),
    /// Is stopped and removed.
    goes: (String, [String; 3]),
}

async fn run_pods(berth: &mut Berth) -> Pods {
    let mut found = Vec::new();
    for name in ["stays", "ends", "goes"] {
        let pod = berth.run_pod(berth.pod_config(name)).await;
        let id = berth.run(&pod, ending("c")).await;
        berth.wait_for_handler(&id, rustix::process::Signal::USR1).await;
        found.push((pod, id));
    }
    let goes = found.remove(2);
    let created = berth.try_create(&goes.0, sleeper("created")).await.unwrap();
    let removed = berth.run(&goes.0, sleeper("removed")).await;
    berth.wait_for_handler(&removed, rustix::process::Signal::TERM).await;
    let ends = found.remove(1);
    Pods { stays: found.remove(0), ends, goes: (goes.0, [goes.1, created, removed]) }
}

/// Checks the operations that must work with any fault of the disk.
async fn check_exits_stops_and_removals(berth: &mut Berth, pods: &Pods) {
    let (_, ends) = &pods.ends;
    assert_eq!(berth.sh(ends, "kill -USR1 1; echo sent").await, "sent");
    let status = berth.wait_exited(ends).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (7, "Error"));
    // The container has exited, so the stop does not wait.
    answered("StopContainer", berth.stop_container(ends, 60)).await;
    let (pod, [runs, created, removed]) = &pods.goes;
    answered("StopContainer", berth.stop_container(removed, 60)).await;
    assert_eq!(berth.status(removed).await.exit_code, 0, "the stop signal must end the container");
    answered("RemoveContainer", berth.remove_container(removed)).await;
    assert_eq!(listed(berth, removed).await, None);
    answered("StopPodSandbox", berth.stop_pod(pod)).await;
    assert_eq!(berth.pod_status(pod).await.state(), PodSandboxState::SandboxNotready);
    for container in [runs, created] {
        assert_eq!(berth.status(container).await.state(), ContainerState::ContainerExited);
    }
    answered("RemovePodSandbox", berth.remove_pod(pod)).await;
    let all = crate::survival::pods(berth).await;
    assert!(all.iter().all(|(id, _)| id != pod), "{all:?}");
    until("the keeper of the removed pod is left", || crate::survival::keepers_of(pod).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_does_not_block_exits_stops_or_removals() {
    let mut berth = Berth::start_as(DISK).await;
    let known = run_pods(&mut berth).await;
    berth.disk.as_ref().unwrap().fill();
    // New objects are refused with a clear error, and leave nothing.
    let refused = berth.try_run_pod(berth.pod_config("refused")).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    let refused = berth.try_create(&known.stays.0, sleeper("refused")).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(berth.path("daemon.log").exists());
    check_exits_stops_and_removals(&mut berth, &known).await;
    assert_eq!(pods(&mut berth).await.len(), 2);
    // Only the daemon's memory and the keeper have the exit code. The next daemon must get it from the keeper.
    berth.restart().await;
    let status = berth.status(&known.ends.1).await;
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 7));
    assert_eq!(berth.pod_status(&known.stays.0).await.state(), PodSandboxState::SandboxReady);
    assert_eq!(berth.sh(&known.stays.1, "echo there").await, "there");
    answered("StopPodSandbox", berth.stop_pod(&known.ends.0)).await;
    assert_eq!(berth.status(&known.ends.1).await.exit_code, 7);

    let disk = berth.disk.as_ref().unwrap();
    disk.free();
    let record = disk.folder().join(format!("root/containers/{}/container.json", known.ends.1));
    until("the exit is not recorded", || {
        fs::read_to_string(&record).is_ok_and(|text| text.contains("Exited"))
    })
    .await;
    let again = berth.run_pod(berth.pod_config("again")).await;
    assert_eq!(berth.script(&again, "c", "echo room").await, (0, "room\n".to_owned()));
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_disk_does_not_block_exits_stops_or_removals() {
    let mut berth = Berth::start_as(DISK).await;
    let known = run_pods(&mut berth).await;
    berth.disk.as_ref().unwrap().break_down();
    assert!(berth.try_run_pod(berth.pod_config("refused")).await.is_err());
    assert!(berth.try_create(&known.stays.0, sleeper("refused")).await.is_err());
    check_exits_stops_and_removals(&mut berth, &known).await;
    for (pod, container) in [&known.ends, &known.stays] {
        answered("RemoveContainer", berth.remove_container(container)).await;
        answered("RemovePodSandbox", berth.remove_pod(pod)).await;
    }
    assert_eq!(pods(&mut berth).await, []);
    assert_eq!(berth.left_running().await, Vec::<String>::new());
    // The next daemon finds the records that are left on the disk. They can be removed again.
    berth.restart().await;
    for (pod, state) in pods(&mut berth).await {
        assert_eq!(state, PodSandboxState::SandboxNotready);
        answered("RemovePodSandbox", berth.remove_pod(&pod)).await;
    }
    assert_eq!(pods(&mut berth).await, []);
    assert_eq!(berth.left_running().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_disk_blocks_only_calls_that_write_to_it() {
    let mut berth = Berth::start_as(DISK).await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let stops = berth.run(&pod, sleeper("stops")).await;
    berth.wait_for_handler(&stops, rustix::process::Signal::TERM).await;
    let lives = berth.run(&pod, sleeper("lives")).await;
    let mut frozen = berth.disk.as_ref().unwrap().freeze(PATIENCE);
    // There are more calls than worker threads, of every kind that writes.
    let mut waiting = Vec::new();
    for number in 0..8 {
        let config = berth.pod_config(&format!("waits{number}"));
        let mut client = berth.runtime.clone();
        waiting.push(tokio::spawn(async move {
            let request = RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
            client.run_pod_sandbox(request).await.map(drop)
        }));
        let mut client = berth.runtime.clone();
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.clone(),
            config: Some(sleeper(&format!("waits{number}"))),
            sandbox_config: None,
        };
        waiting.push(tokio::spawn(async move { client.create_container(request).await.map(drop) }));
        let mut client = berth.runtime.clone();
        let request = UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: pod.clone(),
            overhead: Some(LinuxContainerResources { cpu_shares: 2 + number, ..Default::default() }),
            ..Default::default()
        };
        waiting
            .push(tokio::spawn(async move { client.update_pod_sandbox_resources(request).await.map(drop) }));
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    for _ in 0..10 {
        answered("Version", berth.runtime.version(VersionRequest::default())).await.unwrap();
        assert_eq!(answered("ListPodSandbox", pods(&mut berth)).await.len(), 1);
        assert_eq!(
            answered("ListContainers", listed(&mut berth, &lives)).await,
            Some(ContainerState::ContainerRunning)
        );
        answered("Status", berth.runtime.status(StatusRequest { verbose: false })).await.unwrap();
        let request = ListContainerStatsRequest { filter: None };
        let stats =
            answered("ListContainerStats", berth.runtime.list_container_stats(request)).await.unwrap();
        assert!(stats.into_inner().stats.iter().any(|found| found.cpu.is_some()));
        let request = ListPodSandboxStatsRequest { filter: None };
        answered("ListPodSandboxStats", berth.runtime.list_pod_sandbox_stats(request)).await.unwrap();
        let request = ListPodSandboxMetricsRequest {};
        answered("ListPodSandboxMetrics", berth.runtime.list_pod_sandbox_metrics(request)).await.unwrap();
    }
    assert_eq!(berth.sh(&lives, "echo there").await, "there");
    // An exit is reported although the disk is frozen.
    answered("StopContainer", berth.stop_container(&stops, 60)).await;
    assert_eq!(berth.status(&stops).await.state(), ContainerState::ContainerExited);
    assert!(frozen.is_frozen(), "the disk must be frozen until here");
    assert!(waiting.iter().all(|call| !call.is_finished()), "calls that write must wait");
    drop(frozen);
    for call in waiting {
        answered("a call that waited", call).await.unwrap().unwrap();
    }
    assert_eq!(pods(&mut berth).await.len(), 9);
    assert_eq!(berth.status(&stops).await.exit_code, 0);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_on_a_frozen_disk_blocks_only_its_writers() {
    let mut berth = Berth::start().await;
    let disk = Disk::make(&berth.path(""), 128);
    let logs = disk.folder().join("logs");
    let mut config = berth.pod_config("pod");
    config.log_directory = logs.display().to_string();
    let pod = berth.run_pod(config).await;
    let writes =
        shell("writes", "trap 'exit 7' TERM; n=0; while true; do n=$((n+1)); echo \"line $n\"; done");
    let writes = berth.run(&pod, writes).await;
    let quiet =
        berth.run(&pod, shell("quiet", "trap 'echo end; exit 5' TERM; while true; do sleep 0.1; done")).await;
    berth.wait_for_handler(&quiet, Signal::TERM).await;
    let log = logs.join("writes.log");
    until("the log does not grow", || fs::metadata(&log).is_ok_and(|found| found.len() > 100_000)).await;
    let mut frozen = disk.freeze(PATIENCE);
    // By then all pipes and buffers are full.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(berth.sh(&quiet, "echo there").await, "there");
    answered("StopContainer", berth.stop_container(&quiet, 60)).await;
    assert_eq!(berth.status(&quiet).await.exit_code, 5, "the stop signal must end the container");
    assert_eq!(berth.status(&writes).await.state(), ContainerState::ContainerRunning);
    answered("StopPodSandbox", berth.stop_pod(&pod)).await;
    assert_eq!(berth.status(&writes).await.state(), ContainerState::ContainerExited);
    answered("RemovePodSandbox", berth.remove_pod(&pod)).await;
    assert!(frozen.is_frozen(), "the disk must be frozen until here");
    drop(frozen);
    // Data that was queued for the disk is written completely.
    until("the writer process is left", || crate::survival::keepers_of(&pod).is_empty()).await;
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.ends_with('\n'));
    let numbers = text.lines().filter_map(|line| line.rsplit_once("F line ")?.1.parse::<usize>().ok());
    assert!(numbers.eq(1..=text.lines().count()), "a line is missing or doubled");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
