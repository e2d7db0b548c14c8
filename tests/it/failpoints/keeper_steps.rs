//! The keeper, or the daemon, dies while the keeper is at a step.

use std::time::Duration;

use berth_proto::v1::*;
use berth_runtime::keeper_step::KeeperStep;
use tokio::io::AsyncWriteExt as _;
use tonic::Status;

use super::keeper::assert_lost;
use super::scene::{Call, Scene, Stopped, answer, begin};
use super::victim::Victim;
use crate::support::sleeper;

#[tokio::test(flavor = "multi_thread")]
async fn the_keeper_dies_at_its_own_step() {
    let mut scene = Scene::new("").await;
    for step in KeeperStep::ALL.iter().copied().filter(|step| *step != KeeperStep::Namespaces) {
        let (_, call, stopped) = reach(&mut scene, step).await;
        stopped.kill().await;
        let ended = answer(step.into(), call).await;
        println!("{step:?}: {ended:?}");
        assert_lost(&mut scene, step).await;
        scene.end_step(step).await;
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_dies_while_a_keeper_is_at_its_own_step() {
    let mut scene = Scene::new("").await;
    for step in KeeperStep::ALL.iter().copied().filter(|step| *step != KeeperStep::Namespaces) {
        let (victim, call, stopped) = reach(&mut scene, step).await;
        scene.berth.kill();
        // The exec or the exit may have been answered before the keeper has stopped.
        let _broken = answer(step.into(), call).await;
        stopped.release();
        scene.berth.restart().await;
        match victim.pod.as_deref() {
            // A pod that was not reported to a client.
            None => {
                assert!(scene.pods().await.is_empty(), "{step:?}");
                let config = scene.berth.pod_config(&victim.name);
                let pod = scene.berth.try_run_pod(config).await.unwrap();
                scene.assert_works(step, &pod).await;
            }
            Some(pod) if matches!(step, KeeperStep::Shutdown | KeeperStep::Killed) => {
                scene.berth.stop_pod(pod).await;
                let status = scene.berth.pod_status(pod).await;
                assert_eq!(status.state(), PodSandboxState::SandboxNotready, "{step:?}");
            }
            Some(pod) => {
                check_container(&mut scene, &victim, step).await;
                scene.assert_works(step, pod).await;
            }
        }
        scene.end_step(step).await;
    }
    scene.end().await;
}

/// Repeats the call of a container's step.
async fn check_container(scene: &mut Scene, victim: &Victim, step: KeeperStep) {
    match step {
        KeeperStep::Create | KeeperStep::Cloned | KeeperStep::AtGate => {
            assert!(scene.containers().await.is_empty(), "{step:?}");
            let id = scene.berth.try_create(victim.pod(), sleeper("c")).await.unwrap();
            scene.berth.try_start_container(&id).await.unwrap();
            assert_eq!(scene.berth.sh(&id, "echo works").await, "works", "{step:?}");
        }
        // The keeper has the call, and starts the container.
        KeeperStep::Start | KeeperStep::Runs => {
            let again = scene.berth.try_start_container(victim.container()).await;
            println!("{step:?}: {again:?}");
            let state = scene.berth.status(victim.container()).await.state();
            assert_eq!(state, ContainerState::ContainerRunning, "{step:?}");
            assert_eq!(scene.berth.sh(victim.container(), "echo works").await, "works", "{step:?}");
        }
        KeeperStep::Signal | KeeperStep::Ended | KeeperStep::Recorded | KeeperStep::Reported => {
            scene.berth.stop_container(victim.container(), 100).await;
            let status = scene.berth.status(victim.container()).await;
            assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 0), "{step:?}");
        }
        KeeperStep::Forget => {
            scene.berth.remove_container(victim.container()).await;
            assert!(scene.containers().await.is_empty(), "{step:?}");
        }
        _ => {
            let works = scene.berth.sh(victim.container(), "echo works").await;
            assert_eq!(works, "works", "{step:?}");
        }
    }
}

/// A daemon that starts again asks keepers for the namespaces of their pods. Either of two pods may be the one that is lost.
#[tokio::test(flavor = "multi_thread")]
async fn the_keeper_dies_when_the_next_daemon_asks_for_namespaces() {
    let mut scene = Scene::new("").await;
    let step = KeeperStep::Namespaces;
    let second = Victim::of(&mut scene, "StopContainer").await;
    scene.berth.kill();
    scene.arm(step);
    scene.berth.start_again();
    let call = begin(async { Ok(()) });
    let stopped = scene.stopped(step, &call).await;
    let command = std::fs::read_to_string(format!("/proc/{}/cmdline", stopped.pid)).unwrap();
    stopped.kill().await;
    scene.berth.connect_again().await;
    if command.contains(&scene.other.0) {
        let address = scene.berth.pod_status(second.pod()).await.network.unwrap().ip;
        scene.other = (second.pod().to_owned(), second.container().to_owned(), address);
    }
    assert_lost(&mut scene, step).await;
    scene.end_step(step).await;
    scene.end().await;
}

/// Creates what a step of a keeper needs, and makes the call that reaches it.
async fn reach(scene: &mut Scene, step: KeeperStep) -> (Victim, Call, Stopped) {
    use KeeperStep as S;
    let operation = match step {
        S::Hello | S::Sandbox | S::PauseCloned | S::PauseRuns => "RunPodSandbox",
        S::Create | S::Cloned | S::AtGate => "CreateContainer",
        S::Start | S::Runs => "StartContainer",
        _ => "StopContainer",
    };
    let mut victim = Victim::of(scene, operation).await;
    if matches!(step, S::Attach | S::Resize) {
        victim.container = Some(terminal(scene, victim.pod()).await);
    }
    scene.arm(step);
    let call = match step {
        S::Hello | S::Sandbox | S::PauseCloned | S::PauseRuns => victim.run_pod(scene, false),
        S::Create | S::Cloned | S::AtGate => victim.create(scene, false),
        S::Start | S::Runs => victim.start(scene),
        S::Signal | S::Ended | S::Recorded | S::Reported => victim.stop(scene, 100),
        S::Exec | S::ExecCloned | S::ExecRuns | S::ExecEnded => exec(scene, &victim, 0),
        S::SignalExec => late_exec(scene, &victim).await,
        S::ReopenLog => reopen(scene, &victim),
        S::Attach | S::Resize => attach(scene, &victim).await,
        S::Forget => victim.remove(scene),
        S::Shutdown | S::Killed => victim.stop_pod(scene),
        S::Namespaces => panic!("a daemon that starts reaches it"),
    };
    let stopped = scene.stopped(step, &call).await;
    (victim, call, stopped)
}

async fn terminal(scene: &mut Scene, pod: &str) -> String {
    let mut config = sleeper("terminal");
    config.tty = true;
    scene.berth.run(pod, config).await
}

fn exec(scene: &Scene, victim: &Victim, timeout: i64) -> Call {
    let mut client = scene.berth.runtime.clone();
    let (container_id, cmd) = (victim.container().to_owned(), vec!["true".to_owned()]);
    let request = ExecSyncRequest { container_id, cmd, timeout };
    begin(async move { client.exec_sync(request).await })
}

/// An exec whose caller has given up before its command runs: the keeper is held for longer than that.
async fn late_exec(scene: &Scene, victim: &Victim) -> Call {
    scene.arm(KeeperStep::ExecCloned);
    let call = exec(scene, victim, 1);
    let held = scene.stopped(KeeperStep::ExecCloned, &call).await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    held.release();
    call
}

fn reopen(scene: &Scene, victim: &Victim) -> Call {
    let mut client = scene.berth.runtime.clone();
    let request = ReopenContainerLogRequest { container_id: victim.container().to_owned() };
    begin(async move { client.reopen_container_log(request).await })
}

/// Attaches to a terminal and changes its size, as kubectl does.
async fn attach(scene: &mut Scene, victim: &Victim) -> Call {
    let container_id = victim.container().to_owned();
    let request =
        AttachRequest { container_id, stdin: true, stdout: true, tty: true, ..AttachRequest::default() };
    let url = scene.berth.runtime.attach(request).await.unwrap().into_inner().url;
    let mut client = scene.berth.websocket(&url, "v4.channel.k8s.io").await;
    let size = br#"{"Width":91,"Height":17}"#;
    // A binary frame with a mask of zeros (RFC 6455, section 5.2), on the channel of sizes.
    let mut frame = vec![0x82, 0x80 | u8::try_from(size.len() + 1).unwrap(), 0, 0, 0, 0, 4];
    frame.extend_from_slice(size);
    client.write_all(&frame).await.unwrap();
    begin(async move {
        let mut rest = Vec::new();
        // The session ends with the daemon, or with the keeper.
        drop(tokio::io::AsyncReadExt::read_to_end(&mut client, &mut rest).await);
        Ok::<_, Status>(())
    })
}
