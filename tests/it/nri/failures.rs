//! Plugins that reject, conflict, do not answer or end.

use std::time::{Duration, Instant};

use berth_proto::nri::{ConfigureResponse, ContainerAdjustment, FailurePolicy, KeyValue, Mount};

use super::plugin::{Reaction, TestPlugin};
use super::{adjusting, socket};
use crate::support::{Berth, code, sleeper};
use tonic::Code;

fn setting(key: &str, value: &str) -> ContainerAdjustment {
    ContainerAdjustment {
        env: vec![KeyValue { key: key.to_owned(), value: value.to_owned() }],
        ..ContainerAdjustment::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn conflicts_name_both_plugins() {
    let mut berth = Berth::start().await;
    let path = socket(&berth);
    let _first = TestPlugin::reacting(&path, "10", "a", adjusting("c", setting("X", "1"))).await;
    let _second = TestPlugin::reacting(&path, "20", "b", adjusting("c", setting("X", "2"))).await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let error = berth.try_create(&pod, sleeper("c")).await.unwrap_err();
    assert!(error.message().contains("NRI plugins \"10-a\" and \"20-b\" both set Env \"X\""), "{error}");
    assert_eq!(code(Err::<(), _>(error)), Code::FailedPrecondition);
    // Other containers have no conflict.
    berth.run(&pod, sleeper("other")).await;
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_creation_is_undone_and_can_be_repeated() {
    let mut berth = Berth::start().await;
    let rejected = std::sync::Arc::new(std::sync::Mutex::new(vec![
        "RunPodSandbox",
        "CreateContainer",
        "StartContainer",
    ]));
    let left = rejected.clone();
    let plugin = TestPlugin::reacting(&socket(&berth), "10", "strict", move |method, _| {
        let mut left = left.lock().unwrap();
        let place = left.iter().position(|other| *other == method)?;
        left.remove(place);
        Some(Reaction::Error("not today"))
    })
    .await;
    let config = berth.pod_config("pod");
    let error = berth.try_run_pod(config.clone()).await.unwrap_err();
    assert!(error.message().contains("NRI plugin 10-strict failed: not today"), "{error}");
    let pod = berth.run_pod(config).await;
    let error = berth.try_create(&pod, sleeper("c")).await.unwrap_err();
    assert!(error.message().contains("not today"), "{error}");
    let id = berth.try_create(&pod, sleeper("c")).await.unwrap();
    let error = berth.try_start_container(&id).await.unwrap_err();
    assert!(error.message().contains("not today"), "{error}");
    berth.try_start_container(&id).await.unwrap();
    let calls = plugin.calls();
    assert_eq!(calls[2..5], ["RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"], "{calls:?}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_does_not_answer_is_disconnected_and_the_call_goes_on() {
    let mut berth = Berth::start().await;
    let path = socket(&berth);
    let mut silent = TestPlugin::reacting(&path, "10", "silent", |method, _| {
        (method == "CreateContainer").then_some(Reaction::Silence)
    })
    .await;
    let mut dying = TestPlugin::reacting(&path, "20", "dying", |method, _| {
        (method == "CreateContainer").then_some(Reaction::End)
    })
    .await;
    let healthy = TestPlugin::reacting(&path, "30", "healthy", adjusting("c", setting("X", "1"))).await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let began = Instant::now();
    let id = berth.run(&pod, sleeper("c")).await;
    assert!(began.elapsed() >= Duration::from_secs(2), "the time limit of a call");
    silent.closed().await;
    dying.closed().await;
    assert_eq!(berth.sh(&id, "echo $X").await, "1");
    berth.remove_container(&id).await;
    assert!(healthy.calls().contains(&"RemoveContainer".to_owned()));
    let log = std::fs::read_to_string(berth.path("daemon.log")).unwrap();
    assert!(log.contains("10-silent") && log.contains("no answer after 2s"), "{log}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_policy_fails_the_call_or_keeps_the_plugin() {
    let mut berth = Berth::start().await;
    let policy = FailurePolicy { fail_request: true, keep_connected: true };
    let mut silent = true;
    let plugin = TestPlugin::reacting(&socket(&berth), "10", "required", move |method, _| match method {
        "Configure" => Some(Reaction::answer(&ConfigureResponse { events: 0, failure_policy: Some(policy) })),
        "CreateContainer" => std::mem::take(&mut silent).then_some(Reaction::Silence),
        _ => None,
    })
    .await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let error = berth.try_create(&pod, sleeper("c")).await.unwrap_err();
    assert!(error.message().contains("NRI plugin 10-required failed: no answer after 2s"), "{error}");
    let id = berth.run(&pod, sleeper("c")).await;
    assert!(plugin.calls().contains(&"PostStartContainer".to_owned()), "{id} is started");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_plugins_are_refused_and_do_not_block_others() {
    let mut berth = Berth::start().await;
    let path = socket(&berth);
    // Connected, and silent.
    let idle = tokio::net::UnixStream::connect(&path).await.unwrap();
    let mut unknown = TestPlugin::start(&path, "10", "unknown", |method, _| {
        (method == "Configure")
            .then(|| Reaction::answer(&ConfigureResponse { events: 1 << 20, failure_policy: None }))
    })
    .await;
    unknown.closed().await;
    let mut slow = TestPlugin::start(&path, "10", "slow", |method, _| {
        (method == "Synchronize").then_some(Reaction::Silence)
    })
    .await;
    slow.closed().await;
    let change = ContainerAdjustment {
        mounts: vec![Mount { destination: "/x".to_owned(), r#type: "tmpfs".to_owned(), ..Mount::default() }],
        ..ContainerAdjustment::default()
    };
    let _good = TestPlugin::reacting(&path, "10", "good", adjusting("c", change)).await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let id = berth.run(&pod, sleeper("c")).await;
    assert_eq!(berth.sh(&id, "grep -c ' /x ' /proc/mounts").await, "1");
    let log = std::fs::read_to_string(berth.path("daemon.log")).unwrap();
    assert!(log.contains("it subscribes to unknown events 0x100000"), "{log}");
    drop(idle);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_cannot_be_used_does_not_stop_the_daemon() {
    let mut berth =
        Berth::start_with("[nri]\nsocket_path = \"/proc/nri.sock\"\nplugin_path = \"/nonexistent\"\n").await;
    berth.load_image().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    berth.run(&pod, sleeper("c")).await;
    let log = std::fs::read_to_string(berth.path("daemon.log")).unwrap();
    assert!(log.contains("NRI plugins cannot connect"), "{log}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
