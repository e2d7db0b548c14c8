//! Containers of OCI runtimes while the daemon or the keeper is killed, and runtimes that fail or hang.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use berth_proto::v1::*;

use super::{RUNTIMES, run_pod, start, start_with, state};
use crate::support::{PATIENCE, shell, sleeper, text_of};

#[tokio::test(flavor = "multi_thread")]
async fn containers_continue_without_the_daemon() {
    let mut berth = start().await;
    let mut all = Vec::new();
    for (handler, _) in RUNTIMES {
        let pod = run_pod(&mut berth, handler, handler).await;
        let running = berth.run(&pod, sleeper("running")).await;
        let ending = berth.run(&pod, shell("ending", "sleep 1; echo bye; exit 9")).await;
        let waiting = berth.try_create(&pod, sleeper("waiting")).await.unwrap();
        all.push((handler, running, ending, waiting));
    }
    berth.kill();
    for (_, _, ending, _) in &all {
        let record = berth.path(&format!("root/containers/{ending}/exit.json"));
        let until = Instant::now() + PATIENCE;
        while !record.exists() {
            assert!(Instant::now() < until, "there is no {record:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    berth.restart().await;
    for (handler, running, ending, waiting) in all {
        assert_eq!(berth.status(&running).await.state(), ContainerState::ContainerRunning, "{handler}");
        assert_eq!(berth.sh(&running, "echo still here").await, "still here");
        let ended = berth.status(&ending).await;
        assert_eq!(ended.exit_code, 9, "{handler}");
        assert_eq!(text_of(&fs::read_to_string(&ended.log_path).unwrap()), "bye\n");
        berth.try_start_container(&waiting).await.unwrap();
        berth.wait_for_handler(&waiting, rustix::process::Signal::TERM).await;
        berth.stop_container(&waiting, 20).await;
        assert_eq!(berth.status(&waiting).await.exit_code, 0, "{handler}");
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_killed_while_it_creates_leaves_nothing() {
    let mut berth = start().await;
    for round in 0..6_u32 {
        let (handler, _) = RUNTIMES[usize::try_from(round % 2).unwrap()];
        let pod = run_pod(&mut berth, &format!("pod-{round}"), handler).await;
        let mut client = berth.runtime.clone();
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.clone(),
            config: Some(sleeper("c")),
            sandbox_config: None,
        };
        let creating = tokio::spawn(async move { client.create_container(request).await });
        tokio::time::sleep(Duration::from_millis(u64::from(round) * 15)).await;
        berth.kill();
        drop(creating.await);
        berth.restart().await;
        let (exit, _) = berth.script(&pod, &format!("check-{round}"), "exit 0").await;
        assert_eq!(exit, 0, "round {round}");
        berth.remove_pod(&pod).await;
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_keeper_leaves_no_state_of_the_runtime() {
    let mut berth = start().await;
    for (handler, _) in RUNTIMES {
        let pod = run_pod(&mut berth, handler, handler).await;
        let id = berth.run(&pod, sleeper("c")).await;
        let pid = berth.info(&id).await["pid"].as_i64().unwrap();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let keeper = stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap();
        let keeper = rustix::process::Pid::from_raw(keeper).unwrap();
        rustix::process::kill_process(keeper, rustix::process::Signal::KILL).unwrap();
        berth.wait_exited(&id).await;
        berth.remove_container(&id).await;
        assert!(!state(&berth, handler, &id).exists(), "{handler}");
        berth.remove_pod(&pod).await;
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

/// Writes a runtime that does something before it becomes runc.
fn write_runtime(path: &Path, script: &str) {
    fs::write(path, format!("#!/bin/sh\n{script}\nexec /usr/sbin/runc \"$@\"\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_that_hangs_does_not_stop_its_pod() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("slow");
    write_runtime(&program, "");
    let mut berth = start_with(&format!("[handlers.slow]\npath = {program:?}\n")).await;
    let pod = run_pod(&mut berth, "pod", "slow").await;
    let other = berth.run(&pod, sleeper("other")).await;
    let marker = folder.path().join("hangs");
    write_runtime(&program, &format!("case \"$*\" in *create*) touch {marker:?}; sleep 4816 ;; esac"));
    let mut client = berth.runtime.clone();
    let request = CreateContainerRequest {
        pod_sandbox_id: pod.clone(),
        config: Some(sleeper("hangs")),
        sandbox_config: None,
    };
    let creating = tokio::spawn(async move { client.create_container(request).await });
    let until = Instant::now() + PATIENCE;
    while !marker.exists() {
        assert!(Instant::now() < until, "the runtime is not called");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The keeper still answers.
    assert_eq!(berth.sh(&other, "echo here").await, "here");
    berth.kill();
    drop(creating.await);
    // The next daemon gives the creation up, which ends the runtime.
    berth.restart().await;
    let hangs = || {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let commands = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
        commands.filter(|command| command.starts_with(b"sleep\x004816")).count()
    };
    let until = Instant::now() + PATIENCE;
    while hangs() > 0 {
        assert!(Instant::now() < until, "the runtime still runs");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_that_fails_to_start_ends_the_container() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("broken");
    write_runtime(&program, "case \"$*\" in *start*) echo no way >&2; exit 1 ;; esac");
    let mut berth = start_with(&format!("[handlers.broken]\npath = {program:?}\n")).await;
    let pod = run_pod(&mut berth, "pod", "broken").await;
    let id = berth.try_create(&pod, sleeper("c")).await.unwrap();
    let error = berth.try_start_container(&id).await.unwrap_err();
    assert!(error.message().contains("broken start failed: no way"), "{error}");
    let status = berth.wait_exited(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"), "{status:?}");
    // A program that is gone does not keep its containers.
    fs::remove_file(&program).unwrap();
    let error = berth.try_create(&pod, sleeper("late")).await.unwrap_err();
    assert!(error.message().contains("broken create failed: No such file"), "{error}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
