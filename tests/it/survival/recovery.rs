//! A daemon that starts after another one was killed during an operation.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use berth_proto::v1::*;
use rustix::process::{Signal, kill_process};

use crate::support::{Berth, shell, sleeper};
use crate::survival::{answered, keepers_of, pause_of, pods, until, wait_until_not_ready};

/// A plugin with a DEL that waits until the test releases it. It records its calls.
const SLOW: &str = r#"#!/bin/sh
folder=${0%/*}
input=$(cat)
case $CNI_COMMAND in
ADD) echo '{ "cniVersion": "1.0.0", "ips": [{ "address": "203.0.113.7/24" }] }' ;;
DEL)
  echo begun >> "$folder/deleting"
  while [ -e "$folder/hold" ]; do sleep 0.05; done
  echo done >> "$folder/deleting" ;;
VERSION) echo '{ "cniVersion": "1.0.0", "supportedVersions": ["1.0.0"] }' ;;
esac
"#;

struct SlowPlugin {
    folder: PathBuf,
}

impl SlowPlugin {
    fn install(berth: &Berth) -> Self {
        let folder = berth.path("bin");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("slow"), SLOW).unwrap();
        fs::set_permissions(folder.join("slow"), fs::Permissions::from_mode(0o755)).unwrap();
        let config = r#"{ "cniVersion": "1.0.0", "name": "slow-net", "plugins": [{ "type": "slow" }] }"#;
        fs::write(berth.path("net.d/10.conflist"), config).unwrap();
        Self { folder }
    }

    /// Makes DEL wait from now on.
    fn hold(&self) {
        fs::write(self.folder.join("hold"), "").unwrap();
    }

    fn release(&self) {
        fs::remove_file(self.folder.join("hold")).unwrap();
    }

    /// Returns the numbers of DEL calls that have begun and that have finished.
    fn deleting(&self) -> (usize, usize) {
        let text = fs::read_to_string(self.folder.join("deleting")).unwrap_or_default();
        let count = |word| text.lines().filter(|line| *line == word).count();
        (count("begun"), count("done"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_stop_keeps_exit_codes_and_leaves_no_keeper() {
    let mut berth = Berth::start().await;
    let plugin = SlowPlugin::install(&berth);
    for round in 0..4_u32 {
        let pod = berth.run_pod(berth.pod_config(&format!("pod{round}"))).await;
        let ended = berth.run(&pod, shell("ended", "exit 7")).await;
        assert_eq!(berth.wait_exited(&ended).await.exit_code, 7);
        let runs = berth.run(&pod, sleeper("runs")).await;
        let waits = berth.try_create(&pod, sleeper("waits")).await.unwrap();
        plugin.hold();
        let (begun, _) = plugin.deleting();
        let mut client = berth.runtime.clone();
        let request = StopPodSandboxRequest { pod_sandbox_id: pod.clone() };
        let stop = tokio::spawn(async move { client.stop_pod_sandbox(request).await });
        until("DEL does not begin", || plugin.deleting().0 > begun).await;
        berth.restart().await;
        assert!(stop.await.unwrap().is_err());
        assert_eq!(berth.pod_status(&pod).await.state(), PodSandboxState::SandboxNotready);
        assert_eq!(berth.status(&ended).await.exit_code, 7);
        let status = berth.status(&runs).await;
        assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 137), "{status:?}");
        assert_eq!(berth.status(&waits).await.state(), ContainerState::ContainerExited);
        plugin.release();
        // The daemon continues the stop by itself. In odd rounds the client also repeats the call.
        if round % 2 == 1 {
            answered("StopPodSandbox", berth.stop_pod(&pod)).await;
        }
        until("the keeper of the stopped pod is left", || keepers_of(&pod).is_empty()).await;
        answered("RemovePodSandbox", berth.remove_pod(&pod)).await;
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_does_not_end_containers_of_a_pod_without_a_pause() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let runs = berth.run(&pod, shell("runs", "trap 'exit 6' TERM; while true; do sleep 0.1; done")).await;
    berth.wait_for_handler(&runs, Signal::TERM).await;
    let ended = berth.run(&pod, shell("ended", "exit 7")).await;
    berth.wait_exited(&ended).await;
    kill_process(pause_of(&mut berth, &pod).await, Signal::KILL).unwrap();
    wait_until_not_ready(&mut berth, &pod).await;
    for _ in 0..2 {
        berth.restart().await;
        assert_eq!(berth.pod_status(&pod).await.state(), PodSandboxState::SandboxNotready);
        assert_eq!(berth.status(&runs).await.state(), ContainerState::ContainerRunning);
        assert_eq!(berth.status(&ended).await.exit_code, 7);
        // Leaves time for the background work of a start.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(berth.status(&runs).await.state(), ContainerState::ContainerRunning);
    berth.stop_container(&runs, 60).await;
    assert_eq!(berth.status(&runs).await.exit_code, 6, "the stop signal must end the container");
    berth.stop_pod(&pod).await;
    until("the keeper of the stopped pod is left", || keepers_of(&pod).is_empty()).await;
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_without_a_readable_record_leaves_nothing_on_the_host() {
    let mut berth = Berth::start().await;
    let pods =
        [berth.run_pod(berth.pod_config("container")).await, berth.run_pod(berth.pod_config("pod")).await];
    let mut containers = Vec::new();
    for pod in &pods {
        containers.push(berth.run(pod, sleeper("runs")).await);
    }
    let well = berth.run(&pods[0], sleeper("well")).await;
    berth.kill();
    fs::write(berth.path(&format!("root/containers/{}/container.json", containers[0])), "{ torn").unwrap();
    fs::write(berth.path(&format!("root/pods/{}/pod.json", pods[1])), "").unwrap();
    berth.restart().await;
    until("the keeper of a pod without a record is left", || keepers_of(&pods[1]).is_empty()).await;
    let gone = |id: &str| {
        let entries = crate::support::leftovers::cgroup_folders(&berth.cgroup_parent);
        !entries.iter().any(|folder| folder.ends_with(id))
    };
    until("cgroups of objects without a record are left", || {
        containers.iter().chain(&pods[1..]).all(|id| gone(id))
    })
    .await;
    assert_eq!(crate::survival::listed(&mut berth, &containers[0]).await, None);
    assert_eq!(berth.status(&well).await.state(), ContainerState::ContainerRunning);
    assert_eq!(berth.sh(&well, "echo there").await, "there");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_answers_while_a_network_plugin_hangs() {
    let mut berth = Berth::start().await;
    let plugin = SlowPlugin::install(&berth);
    let lost = berth.run_pod(berth.pod_config("lost")).await;
    let well = berth.run_pod(berth.pod_config("well")).await;
    let runs = berth.run(&well, sleeper("runs")).await;
    plugin.hold();
    berth.kill();
    crate::survival::signal_keeper(&lost, Signal::KILL);
    berth.restart().await;
    until("DEL does not begin", || plugin.deleting().0 > 0).await;
    let mut all = pods(&mut berth).await;
    all.sort_by_key(|(id, _)| *id == well);
    let states =
        [(lost.clone(), PodSandboxState::SandboxNotready), (well.clone(), PodSandboxState::SandboxReady)];
    assert_eq!(all, states);
    answered("Status", berth.runtime.status(StatusRequest { verbose: false })).await.unwrap();
    assert_eq!(berth.status(&runs).await.state(), ContainerState::ContainerRunning);
    assert_eq!(berth.sh(&runs, "echo there").await, "there");
    // Meanwhile other pods can be run and stopped.
    let again = answered("RunPodSandbox", berth.run_pod(berth.pod_config("again"))).await;
    assert_eq!(answered("a script", berth.script(&again, "c", "exit 4")).await.0, 4);
    assert_eq!(plugin.deleting(), (1, 0), "DEL must still be running here");
    plugin.release();
    until("DEL does not end", || plugin.deleting().1 > 0).await;
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
