//! How containers end: by themselves, by a stop, by the kernel for want of memory.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn the_memory_limit_holds_and_an_oom_kill_is_reported() {
    let (mut berth, pod) = berth_and_pod().await;
    let mut config = shell("eater", "x=; while true; do x=$x$x.; done");
    config.linux.as_mut().unwrap().resources =
        Some(LinuxContainerResources { memory_limit_in_bytes: 20 << 20, ..Default::default() });
    let id = berth.run(&pod, config).await;
    let status = berth.wait_exited(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exited_container_has_exit_code_reason_and_times() {
    let (mut berth, pod) = berth_and_pod().await;
    for (name, script, exit, reason) in [
        ("good", "exit 0", 0, "Completed"),
        ("bad", "exit 42", 42, "Error"),
        ("killed", "kill -9 $$; sleep 9", 137, "Error"),
    ] {
        // Process 1 of a PID namespace ignores a signal that it has no handler for, so the script runs as a child of
        // the shell.
        let id = berth.run(&pod, shell(name, &format!("sh -c '{script}'; exit $?"))).await;
        let status = berth.wait_exited(&id).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (exit, reason), "{name}");
        assert!(status.created_at <= status.started_at && status.started_at <= status.finished_at);
    }
    let id = berth.try_create(&pod, container("none", &["/no/such/command"])).await.unwrap();
    let error = berth.try_start_container(&id).await.unwrap_err();
    assert!(error.message().contains("/no/such/command"), "{error}");
    let status = berth.status(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
    assert!(status.message.contains("No such file"), "{}", status.message);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_sends_the_stop_signal_then_kills_after_the_timeout() {
    let (mut berth, pod) = berth_and_pod().await;
    let gentle = berth.run(&pod, sleeper("gentle")).await;
    berth.wait_for_handler(&gentle, rustix::process::Signal::TERM).await;
    berth.stop_container(&gentle, 60).await;
    assert_eq!(berth.status(&gentle).await.exit_code, 0, "the stop signal ends the container");
    let ignores_term = berth
        .run(&pod, shell("ignores_term", "trap '' TERM; sleep 1000 & while true; do sleep 0.1; done"))
        .await;
    berth.stop_container(&ignores_term, 1).await;
    let status = berth.status(&ignores_term).await;
    assert_eq!((status.exit_code, status.state()), (137, ContainerState::ContainerExited));
    berth.stop_container(&ignores_term, 1).await;
    let mut by_signal = shell("signal", "trap 'exit 7' USR1; while true; do sleep 0.1; done");
    by_signal.stop_signal = Signal::Sigusr1.into();
    let by_signal = berth.run(&pod, by_signal).await;
    berth.wait_for_handler(&by_signal, rustix::process::Signal::USR1).await;
    berth.stop_container(&by_signal, 60).await;
    assert_eq!(berth.status(&by_signal).await.exit_code, 7);
    berth.remove_container(&by_signal).await;
    berth.remove_container(&by_signal).await;
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
