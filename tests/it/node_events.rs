//! The events of the node: OOM kills that do not end a container, failures of the network, pulls, and events that happened
//! before the client has connected. Runs as root.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::commands::{Running, command, json, output, until};
use crate::support::registry::Registry;
use crate::support::{Berth, PATIENCE, shell, sleeper};
use berth_proto::v1::*;
use serde_json::Value;

/// Returns the recent events as JSON.
fn recent(berth: &Berth, arguments: &[&str]) -> Vec<Value> {
    let arguments = [arguments, &["--no-follow", "--output", "json"]].concat();
    let text = output(berth, "events", &arguments);
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn kinds<'a>(events: &'a [Value], key: &str, id: &str) -> Vec<&'a str> {
    let own = events.iter().filter(|event| event[key] == id);
    own.map(|event| event["kind"].as_str().unwrap()).collect()
}

/// Returns the value of the metric of a container.
async fn oom_events(berth: &mut Berth, pod: &str) -> u64 {
    let request = ListPodSandboxMetricsRequest {};
    let pods = berth.runtime.list_pod_sandbox_metrics(request).await.unwrap().into_inner().pod_metrics;
    let pod = pods.into_iter().find(|found| found.pod_sandbox_id == pod).unwrap();
    let mut metrics = pod.container_metrics.into_iter().flat_map(|found| found.metrics);
    metrics.find(|metric| metric.name == "container_oom_events_total").unwrap().value.unwrap().value
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oom_kill_that_does_not_end_the_container_is_an_event_and_is_counted() {
    let address = tempfile::tempdir().unwrap();
    let socket = address.path().join("metrics.sock");
    let mut berth = Berth::start_with(&format!("metrics_address = \"unix://{}\"\n", socket.display())).await;
    berth.load_image().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let mut events = berth.runtime.get_container_events(GetEventsRequest {}).await.unwrap().into_inner();
    // The kernel selects the largest process, which is not the first one.
    let script = "i=0; while :; do until [ -e /tmp/go$i ]; do sleep 0.05; done; tail /dev/zero; i=$((i + 1)); \
                  touch /tmp/went$i; done";
    let mut config = shell("main", script);
    config.linux.as_mut().unwrap().resources =
        Some(LinuxContainerResources { memory_limit_in_bytes: 16 << 20, ..Default::default() });
    let id = berth.run(&pod, config).await;
    let quiet = berth.run(&pod, sleeper("quiet")).await;
    let stream = Running::start(command(&berth, "events", &["--kind", "oom-killed", "--since", "1h"]));
    berth.sh(&id, "touch /tmp/go0").await;
    let line = stream.next();
    assert!(line.contains("default/pod/main") && line.contains("1 process was killed"), "{line}");
    assert_eq!(berth.status(&id).await.state(), ContainerState::ContainerRunning);
    assert_eq!(oom_events(&mut berth, &pod).await, 1);
    let scraped = || {
        let curl = ["--silent", "--unix-socket", socket.to_str().unwrap(), "http://localhost/metrics"];
        let text = std::process::Command::new("curl").args(curl).output().unwrap().stdout;
        let text = String::from_utf8(text).unwrap();
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap();
            line.parse::<u64>().unwrap()
        };
        (value("berth_container_oom_kills_total"), value("berth_containers_oom_total"))
    };
    assert_eq!(scraped(), (1, 0), "a process was killed, and no container");

    // A daemon that starts later watches the container again, and does not repeat what was.
    berth.restart().await;
    assert!(recent(&berth, &[]).is_empty(), "a daemon starts without events");
    berth.sh(&id, "until [ -e /tmp/went1 ]; do sleep 0.05; done; touch /tmp/go1").await;
    until("the second kill is not reported", || !recent(&berth, &["--kind", "oom-killed"]).is_empty()).await;
    assert_eq!(scraped(), (1, 0), "the counters start with the daemon");
    assert_eq!(oom_events(&mut berth, &pod).await, 2);

    // The CRI has no event for such a kill.
    berth.stop_container(&id, 0).await;
    berth.stop_container(&quiet, 0).await;
    let mut seen = Vec::new();
    while let Ok(Ok(Some(event))) = tokio::time::timeout(PATIENCE, events.message()).await {
        seen.push((event.container_id.clone(), event.container_event_type()));
    }
    use ContainerEventType::{ContainerCreatedEvent as Created, ContainerStartedEvent as Started};
    let of_main: Vec<_> = seen.iter().filter(|(of, _)| *of == id).map(|(_, kind)| *kind).collect();
    assert_eq!(of_main, [Created, Started], "up to the end of the first daemon");
    let after = recent(&berth, &[]);
    assert_eq!(kinds(&after, "containerId", &id), ["oom-killed", "container-exited"], "{after:?}");
    assert_eq!(kinds(&after, "containerId", &quiet), ["container-exited"], "{after:?}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn recent_events_are_shown_to_a_client_that_connects_later() {
    let mut berth = Berth::start().await;
    let registry = Registry::start(berth.host_process());
    registry.layers("one", &[]);
    for (name, expected) in [("one", true), ("none", false)] {
        let image = ImageSpec { image: format!("{}/{name}:1", registry.address), ..ImageSpec::default() };
        let request = PullImageRequest { image: Some(image), ..PullImageRequest::default() };
        assert_eq!(berth.images.pull_image(request).await.is_ok(), expected, "{name}");
    }
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let short = berth.run(&pod, shell("short", "exit 4")).await;
    berth.wait_exited(&short).await;
    let events = recent(&berth, &[]);
    let pulls: Vec<_> = events.iter().filter(|event| event.get("image").is_some()).collect();
    let pulls: Vec<_> = pulls.iter().map(|event| event["kind"].as_str().unwrap()).collect();
    assert_eq!(pulls, ["pull-started", "pull-finished", "pull-started", "pull-failed"], "{events:?}");
    assert_eq!(
        kinds(&events, "containerId", &short),
        ["container-created", "container-started", "container-exited"]
    );
    let started = events.iter().find(|event| event["kind"] == "pod-started").unwrap();
    let time = started["time"].as_str().unwrap();
    let since = recent(&berth, &["--since", time, "--kind", "pod-started,pull-failed"]);
    assert_eq!(since, std::slice::from_ref(started));
    assert_eq!(recent(&berth, &["--since", "1h"]), events);
    assert!(recent(&berth, &["--since", "0s"]).is_empty());
    // With --since, the stream continues after the recent events: no event is missing or doubled.
    let stream =
        Running::start(command(&berth, "events", &["--since", "1h", "--kind", "pod-created,pod-deleted"]));
    assert!(stream.next().contains("pod-created"));
    berth.remove_pod(&pod).await;
    let line = stream.next();
    assert!(line.contains("pod-deleted") && line.contains("default/pod"), "{line}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_cannot_be_released_is_an_event() {
    let mut berth = Berth::start_with("").await;
    let bin = berth.path("bin");
    fs::create_dir_all(&bin).unwrap();
    let (plugin, broken) = (bin.join("scripted"), berth.path("broken"));
    let script = format!(
        "#!/bin/sh\ncase $CNI_COMMAND in\nADD) echo '{{\"cniVersion\": \"1.0.0\"}}';;\n\
         DEL) [ ! -e {} ] || {{ echo the datastore is gone >&2; exit 1; }};;\nesac\n",
        broken.display()
    );
    fs::write(&plugin, script).unwrap();
    fs::set_permissions(&plugin, PermissionsExt::from_mode(0o755)).unwrap();
    let conflist = r#"{"cniVersion": "1.0.0", "name": "scripted", "plugins": [{"type": "scripted"}]}"#;
    fs::write(berth.path("net.d/10-scripted.conflist"), conflist).unwrap();
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    fs::write(&broken, "").unwrap();
    let request = StopPodSandboxRequest { pod_sandbox_id: pod.clone() };
    berth.runtime.stop_pod_sandbox(request).await.unwrap_err();
    let events = recent(&berth, &["--kind", "network-failed"]);
    let message = events[0]["message"].as_str().unwrap();
    assert!(message.contains("detach") && message.contains("the datastore is gone"), "{events:?}");
    assert_eq!((&events[0]["podId"], &events[0]["pod"]), (&pod.as_str().into(), &"pod".into()));
    fs::remove_file(&broken).unwrap();
    berth.stop_pod(&pod).await;
    assert_eq!(json(&berth, "ps", &["-a"])[0]["state"], "notready");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
