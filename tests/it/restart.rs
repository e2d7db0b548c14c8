//! The daemon can exit at any moment: its pods keep running, and the next daemon continues with them. Runs as root.

use std::fs;
use std::time::{Duration, Instant};

use crate::support::{Berth, shell, sleeper};
use berth_proto::v1::*;

#[tokio::test(flavor = "multi_thread")]
async fn pods_and_logs_continue_without_the_daemon() {
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
    let until = Instant::now() + crate::support::PATIENCE;
    // The log grows and the exit is recorded without a daemon.
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
    assert!(age > Duration::from_millis(900) && age < crate::support::PATIENCE, "{age:?}");
    assert_eq!(crate::support::text_of(&fs::read_to_string(&ended.log_path).unwrap()), "bye\n");
    assert_eq!(berth.sh(&ticker, "echo still here").await, "still here");
    berth.try_start_container(&waiting).await.unwrap();
    berth.stop_container(&waiting, 10).await;
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_leaves_no_partial_pods_or_containers() {
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
        // Every object that exists is complete and can be used.
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

/// Returns the processes of this host with this text in their command line.
fn processes(words: &str) -> Vec<String> {
    let commands = fs::read_dir("/proc").unwrap().flatten().filter_map(|process| {
        let command = fs::read(process.path().join("cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        command.contains(words).then(|| format!("{} {command}", process.file_name().display()))
    });
    commands.collect()
}

/// Waits until no process has this text in its command line. The daemon answers before it has ended such processes.
async fn wait_until_gone(words: &str, what: &str) {
    let until = Instant::now() + crate::support::PATIENCE;
    while !processes(words).is_empty() {
        assert!(Instant::now() < until, "{what}: {:?}", processes(words));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keeper_without_its_folder_is_ended_with_everything_in_its_pod() {
    let mut other = Berth::start().await;
    let others = other.run_pod(other.pod_config("other")).await;
    let survivor = other.run(&others, sleeper("survivor")).await;
    let mut berth = Berth::start().await;
    // Without a separate PID namespace, orphans do not end with the first process of a container.
    let marker = format!("sleep {}{}", std::process::id(), 4718);
    let script = format!("(setsid sh -c '{marker} & {marker} & wait' &) ; sleep 1000");
    let mut containers = Vec::new();
    for (name, mode) in
        [("own", NamespaceMode::Container), ("shared", NamespaceMode::Pod), ("host", NamespaceMode::Node)]
    {
        for folders in ["state", "records"] {
            let mut config = berth.pod_config(&format!("{name}-{folders}"));
            let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
            security.namespace_options.get_or_insert_default().set_pid(mode);
            let pod = berth.run_pod(config).await;
            let config = crate::support::with_security(shell("c", &script), |security| {
                security.namespace_options.get_or_insert_default().set_pid(mode);
            });
            let container = berth.run(&pod, config).await;
            let waits = berth.try_create(&pod, sleeper("waits")).await;
            containers.push((pod, folders, [Some(container), waits.ok()]));
        }
    }
    let until = Instant::now() + crate::support::PATIENCE;
    while processes(&marker).iter().filter(|line| !line.contains("sh -c")).count() < 12 {
        assert!(Instant::now() < until, "{:?}", processes(&marker));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    berth.kill();
    fs::remove_dir_all(berth.path("run/pods")).unwrap();
    // Some of them have no record either: only their running processes are left.
    for (pod, _, containers) in containers.iter().filter(|(_, folders, _)| *folders == "records") {
        fs::remove_dir_all(berth.path(&format!("root/pods/{pod}"))).unwrap();
        for container in containers.iter().flatten() {
            fs::remove_dir_all(berth.path(&format!("root/containers/{container}"))).unwrap();
        }
    }
    berth.restart().await;
    for (pod, folders, containers) in &containers {
        wait_until_gone(pod, folders).await;
        if *folders == "state" {
            assert_eq!(berth.pod_status(pod).await.state(), PodSandboxState::SandboxNotready);
            for container in containers.iter().flatten() {
                assert_eq!(berth.status(container).await.state(), ContainerState::ContainerExited);
            }
        }
    }
    wait_until_gone(&marker, "all").await;
    assert_eq!(berth.clean().await, Vec::<String>::new());
    // The pods of another daemon are not affected.
    assert_eq!(other.status(&survivor).await.state(), ContainerState::ContainerRunning);
    assert_eq!(other.sh(&survivor, "echo there").await, "there");
    assert_eq!(other.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_with_a_stopped_or_lost_keeper_can_be_removed() {
    let mut berth = Berth::start().await;
    let mut pods = Vec::new();
    for name in ["silent", "lost"] {
        let pod = berth.run_pod(berth.pod_config(name)).await;
        berth.run(&pod, sleeper("c")).await;
        pods.push(pod);
    }
    // One keeper does not answer. The folder of the other is removed while the daemon runs.
    for process in processes(&pods[0]) {
        let pid = process.split(' ').next().unwrap().parse().unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    }
    fs::remove_dir_all(berth.path(&format!("run/pods/{}", pods[1]))).unwrap();
    for pod in &pods {
        // The kubelet retries.
        let until = Instant::now() + crate::support::PATIENCE;
        let request = || RemovePodSandboxRequest { pod_sandbox_id: pod.clone() };
        while let Err(error) = berth.runtime.remove_pod_sandbox(request()).await {
            assert!(Instant::now() < until, "{error}");
        }
        assert_eq!(processes(pod), Vec::<String>::new());
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_keeper_ends_its_pod_and_no_other() {
    let mut berth = Berth::start().await;
    let lost = berth.run_pod(berth.pod_config("lost")).await;
    let other = berth.run_pod(berth.pod_config("other")).await;
    let container = berth.run(&lost, sleeper("c")).await;
    let survivor = berth.run(&other, sleeper("c")).await;
    crate::support::leftovers::kill_keeper_of(&lost);
    let status = berth.wait_exited(&container).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (255, "ContainerStatusUnknown"));
    assert_eq!(berth.pod_status(&lost).await.state(), PodSandboxState::SandboxNotready);
    assert_eq!(berth.status(&survivor).await.state(), ContainerState::ContainerRunning);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
