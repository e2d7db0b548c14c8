//! Keepers that do not answer: every call returns, and stop and remove work.

use berth_proto::v1::*;
use rustix::process::Signal;
use tonic::Code;

use crate::support::{Berth, sleeper};
use crate::survival::{answered, keepers_of, listed, pods, signal_keeper, until};

#[tokio::test(flavor = "multi_thread")]
async fn containers_of_a_stopped_keeper_can_be_stopped_and_removed() {
    stop_and_remove(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_of_a_stopped_keeper_can_be_stopped_and_removed_after_a_restart() {
    stop_and_remove(true).await;
}

async fn stop_and_remove(restarts: bool) {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let mut ids = Vec::new();
    for name in ["stopped", "removed", "rest"] {
        ids.push(berth.run(&pod, sleeper(name)).await);
    }
    let created = berth.try_create(&pod, sleeper("created")).await.unwrap();
    signal_keeper(&pod, Signal::STOP);
    if restarts {
        berth.restart().await;
    }
    assert_eq!(berth.status(&ids[0]).await.state(), ContainerState::ContainerRunning);
    answered("StopContainer", berth.stop_container(&ids[0], 1)).await;
    let status = berth.status(&ids[0]).await;
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 137), "{status:?}");
    for container in [&ids[1], &created] {
        answered("RemoveContainer", berth.remove_container(container)).await;
        assert_eq!(listed(&mut berth, container).await, None);
    }
    // The last state that the next daemon has read can be that the container was created.
    let exec = answered("ExecSync", berth.exec(&ids[2], &["true"], 2)).await.unwrap_err();
    assert!(exec.code() == Code::DeadlineExceeded || restarts, "{exec}");
    answered("StopContainer", berth.stop_container(&ids[2], 1)).await;
    assert_eq!(berth.status(&ids[2]).await.exit_code, 137);
    answered("StopPodSandbox", berth.stop_pod(&pod)).await;
    assert_eq!(berth.pod_status(&pod).await.state(), PodSandboxState::SandboxNotready);
    answered("RemovePodSandbox", berth.remove_pod(&pod)).await;
    until("the keeper of the removed pod is left", || keepers_of(&pod).is_empty()).await;
    assert_eq!(pods(&mut berth).await, []);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

/// Returns the number of descriptors that the daemon has open.
fn descriptors_of(berth: &Berth) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", berth.pid().as_raw_nonzero())).unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn execs_refused_by_a_stopped_keeper_leak_no_descriptors() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let id = berth.run(&pod, sleeper("c")).await;
    assert_eq!(berth.sh(&id, "echo runs").await, "runs");
    let before = descriptors_of(&berth);
    signal_keeper(&pod, Signal::STOP);
    // More requests than the keeper's socket can queue.
    let execs: Vec<_> = (0..120)
        .map(|_| {
            let mut client = berth.runtime.clone();
            let cmd = ["sh", "-c", ":", &"x".repeat(20_000)].map(str::to_owned).to_vec();
            let request = ExecSyncRequest { container_id: id.clone(), cmd, timeout: 1 };
            tokio::spawn(async move { client.exec_sync(request).await })
        })
        .collect();
    for exec in execs {
        let refused = answered("ExecSync", exec).await.unwrap().unwrap_err();
        let codes = [Code::DeadlineExceeded, Code::ResourceExhausted];
        assert!(codes.contains(&refused.code()), "{refused}");
    }
    until("descriptors of execs are left", || descriptors_of(&berth) <= before + 8).await;
    signal_keeper(&pod, Signal::CONT);
    assert_eq!(berth.sh(&id, "echo there").await, "there");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keeper_that_continues_is_used_again() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let stops = berth.run(&pod, sleeper("stops")).await;
    let lives = berth.run(&pod, sleeper("lives")).await;
    signal_keeper(&pod, Signal::STOP);
    // The caller has timed out, so this command must not run.
    let late = answered("ExecSync", berth.exec(&lives, &["touch", "/late"], 1)).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    answered("StopContainer", berth.stop_container(&stops, 0)).await;
    signal_keeper(&pod, Signal::CONT);
    assert_eq!(berth.sh(&lives, "ls / | grep late; echo there").await, "there");
    assert_eq!(berth.status(&stops).await.exit_code, 137);
    assert_eq!(berth.status(&lives).await.state(), ContainerState::ContainerRunning);
    let (exit, _) = berth.script(&pod, "after", "exit 5").await;
    assert_eq!(exit, 5);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
