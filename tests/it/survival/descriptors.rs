//! File descriptors: the soft limit is raised, new work is refused before the limit is reached, and existing pods are
//! not harmed.

use std::fs;
use std::os::unix::net::UnixStream;

use berth_proto::v1::*;
use tonic::Code;

use crate::support::{Berth, Setup, sleeper};
use crate::survival::{answered, pods, until};

/// Runs pods with a container in parallel. Returns those that the daemon accepted.
async fn run_together(berth: &mut Berth, names: &str, count: u32) -> Vec<(String, String)> {
    let tasks: Vec<_> = (0..count)
        .map(|number| {
            let config = berth.pod_config(&format!("{names}{number}"));
            let mut client = berth.runtime.clone();
            tokio::spawn(async move {
                let request = RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
                let pod = client.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
                let request = CreateContainerRequest {
                    pod_sandbox_id: pod.clone(),
                    config: Some(sleeper("c")),
                    sandbox_config: None,
                };
                let container = match client.create_container(request).await {
                    Ok(created) => created.into_inner().container_id,
                    Err(error) => return Ok((pod, Err(error))),
                };
                let request = StartContainerRequest { container_id: container.clone() };
                let started = client.start_container(request).await.map(|_| container);
                Ok::<_, tonic::Status>((pod, started))
            })
        })
        .collect();
    let mut running = Vec::new();
    for task in tasks {
        match answered("RunPodSandbox", task).await.unwrap() {
            Ok((pod, Ok(container))) => running.push((pod, container)),
            Ok((_, Err(error))) | Err(error) => {
                assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
                assert!(error.message().contains("RLIMIT_NOFILE"), "{error}");
            }
        }
    }
    running
}

async fn assert_all_run(berth: &mut Berth, running: &[(String, String)]) {
    for (pod, container) in running {
        assert_eq!(berth.pod_status(pod).await.state(), PodSandboxState::SandboxReady);
        assert_eq!(berth.status(container).await.state(), ContainerState::ContainerRunning);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_soft_limit_of_descriptors_is_raised() {
    let setup = Setup { under: &["prlimit", "--nofile=64:4096"], ..Setup::default() };
    let mut berth = Berth::start_as(setup).await;
    let limits = fs::read_to_string(format!("/proc/{}/limits", berth.pid().as_raw_nonzero())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().nth(3), Some("4096"), "{files}");
    // 24 pods with 3 descriptors each do not fit in 64 descriptors.
    let running = run_together(&mut berth, "pod", 24).await;
    assert_eq!(running.len(), 24);
    assert_all_run(&mut berth, &running).await;
    // A container has the requested limits, not the daemon's.
    let limit = berth.sh(&running[0].1, "ulimit -n").await;
    assert_ne!(limit, "64");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_descriptor_limit_new_work_is_refused_and_pods_continue() {
    let setup = Setup { under: &["prlimit", "--nofile=128:128"], ..Setup::default() };
    let mut berth = Berth::start_as(setup).await;
    let mut running = Vec::new();
    for round in 0..4 {
        running.extend(run_together(&mut berth, &format!("pod{round}-"), 12).await);
    }
    assert!(running.len() >= 6 && running.len() < 48, "{} pods", running.len());
    assert_all_run(&mut berth, &running).await;
    // The clients take the remaining descriptors.
    let socket = berth.path("run/berth.sock");
    let clients: Vec<_> = (0..160).map_while(|_| UnixStream::connect(&socket).ok()).collect();
    for (_, container) in &running {
        // The answer depends on the descriptors that are free.
        let _refused = berth.exec(container, &["true"], 0).await;
    }
    assert_all_run(&mut berth, &running).await;
    drop(clients);
    let (_, container) = running[0].clone();
    berth.stop_container(&container, 0).await;
    berth.remove_container(&container).await;
    let (gone, _) = running.remove(0);
    berth.remove_pod(&gone).await;
    // A daemon that cannot read everything at its start must not treat pods as lost: it exits.
    let known = pods(&mut berth).await.len();
    for limit in [20, 24, 28, 32, 36, 40] {
        berth.kill();
        berth.start_under(&["prlimit", &format!("--nofile={limit}:{limit}")]);
        berth.start_again();
        let began = std::time::Instant::now();
        while !berth.has_ended() && began.elapsed() < std::time::Duration::from_secs(3) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
    berth.start_under(&[]);
    berth.restart().await;
    assert_eq!(pods(&mut berth).await.len(), known);
    assert_all_run(&mut berth, &running).await;
    for (_, container) in &running {
        assert_eq!(berth.sh(container, "echo there").await, "there");
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
    until("keepers are left", || running.iter().all(|(pod, _)| crate::survival::keepers_of(pod).is_empty()))
        .await;
}
