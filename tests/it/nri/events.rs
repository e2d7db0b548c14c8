//! The events of pods and containers, their order, and plugins that connect while pods exist.

use berth_proto::nri::{ConfigureResponse, Container, CreateContainerRequest, Event, SynchronizeRequest};
use berth_proto::v1::*;
use prost::Message;
use tokio::sync::oneshot;

use super::plugin::{Reaction, TestPlugin};
use super::socket;
use crate::support::{Berth, shell, sleeper};

/// The events of a pod with a container that is started, updated, stopped and removed.
const LIFE: [&str; 14] = [
    "RunPodSandbox",
    "CreateContainer",
    "ValidateContainerAdjustment",
    "PostCreateContainer",
    "StartContainer",
    "PostStartContainer",
    "UpdateContainer",
    "PostUpdateContainer",
    "UpdatePodSandbox",
    "PostUpdatePodSandbox",
    "StopContainer",
    "RemoveContainer",
    "StopPodSandbox",
    "RemovePodSandbox",
];

async fn live(berth: &mut Berth, name: &str) -> (String, String) {
    let pod = berth.run_pod(berth.pod_config(name)).await;
    let id = berth.run(&pod, sleeper("c")).await;
    let linux = Some(LinuxContainerResources { cpu_shares: 512, ..Default::default() });
    let request = UpdateContainerResourcesRequest { container_id: id.clone(), linux, ..Default::default() };
    berth.runtime.update_container_resources(request).await.unwrap();
    let request = UpdatePodSandboxResourcesRequest { pod_sandbox_id: pod.clone(), ..Default::default() };
    berth.runtime.update_pod_sandbox_resources(request).await.unwrap();
    berth.stop_container(&id, 10).await;
    berth.remove_container(&id).await;
    berth.remove_pod(&pod).await;
    (pod, id)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_is_sent_once_and_in_order() {
    let mut berth = Berth::start().await;
    let plugin = TestPlugin::connect(&socket(&berth), "10", "all").await;
    assert_eq!(plugin.calls(), ["Configure", "Synchronize"]);
    plugin.forget();
    let (pod, id) = live(&mut berth, "pod").await;
    assert_eq!(plugin.calls(), LIFE);
    for seen in plugin.seen() {
        // Its fields differ after the first two.
        if seen.method.starts_with("Update") || seen.method.starts_with("Validate") {
            continue;
        }
        let (seen_pod, container) = seen.event();
        assert_eq!((seen_pod.id.as_str(), seen_pod.name.as_str()), (pod.as_str(), "pod"), "{}", seen.method);
        assert_eq!((seen_pod.namespace.as_str(), seen_pod.uid.as_str()), ("default", "uid-pod"));
        assert!(!seen_pod.ips.is_empty() || seen.method == "RemovePodSandbox", "{}", seen.method);
        let is_of_container = seen.method.contains("Container");
        let Some(container) = container.filter(|_| is_of_container) else { continue };
        assert_eq!((container.id.as_str(), container.name.as_str()), (id.as_str(), "c"), "{}", seen.method);
        assert!(container.args.contains(&"sh".to_owned()) && !container.mounts.is_empty(), "{}", seen.method);
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn plugins_are_called_by_index_and_get_the_events_that_they_subscribe_to() {
    let mut berth = Berth::start().await;
    let path = socket(&berth);
    let order = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut plugins = Vec::new();
    for index in ["30", "10", "20"] {
        let order = order.clone();
        let events = 1 << (i32::from(Event::StartContainer) - 1);
        plugins.push(
            TestPlugin::reacting(&path, index, "one", move |method, _| {
                if method == "Configure" {
                    return Some(Reaction::answer(&ConfigureResponse { events, failure_policy: None }));
                }
                if method == "StartContainer" {
                    order.lock().unwrap().push(index);
                }
                None
            })
            .await,
        );
    }
    live(&mut berth, "pod").await;
    assert_eq!(*order.lock().unwrap(), ["10", "20", "30"]);
    for plugin in &plugins {
        assert_eq!(plugin.calls(), ["Configure", "Synchronize", "StartContainer"]);
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_without_functions_for_events_gets_state_changes() {
    let mut berth = Berth::start().await;
    let plugin = TestPlugin::reacting(&socket(&berth), "10", "old", |method, _| {
        let known = [
            "Configure",
            "Synchronize",
            "CreateContainer",
            "StateChange",
            "UpdateContainer",
            "StopContainer",
            "UpdatePodSandbox",
            "ValidateContainerAdjustment",
        ];
        (!known.contains(&method)).then_some(Reaction::Unknown)
    })
    .await;
    live(&mut berth, "pod").await;
    let changes: Vec<i32> = plugin
        .seen()
        .iter()
        .filter(|seen| seen.method == "StateChange")
        .map(|seen| berth_proto::nri::StateChangeEvent::decode(seen.payload.as_slice()).unwrap().event)
        .collect();
    let expected = [
        Event::RunPodSandbox,
        Event::PostCreateContainer,
        Event::StartContainer,
        Event::PostStartContainer,
        Event::PostUpdateContainer,
        Event::PostUpdatePodSandbox,
        Event::RemoveContainer,
        Event::StopPodSandbox,
        Event::RemovePodSandbox,
    ];
    assert_eq!(changes, expected.map(i32::from));
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_container_is_sent_without_a_stop() {
    let mut berth = Berth::start().await;
    let plugin = TestPlugin::connect(&socket(&berth), "10", "all").await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let id = berth.run(&pod, shell("c", "exit 3")).await;
    let (_, container) = plugin.until("StopContainer").await.event();
    assert_eq!(container.map(|container| (container.id, container.exit_code)), Some((id.clone(), 3)));
    // Neither a stop nor the end of the pod sends it again.
    berth.stop_container(&id, 1).await;
    berth.remove_pod(&pod).await;
    let stops = plugin.calls().iter().filter(|call| *call == "StopContainer").count();
    assert_eq!(stops, 1, "{:?}", plugin.calls());
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

fn synchronized(plugin: &TestPlugin) -> (Vec<String>, Vec<String>) {
    let all = plugin.seen().into_iter().filter(|seen| seen.method == "Synchronize");
    let all: Vec<_> = all.map(|seen| SynchronizeRequest::decode(seen.payload.as_slice()).unwrap()).collect();
    let pods = all.iter().flat_map(|part| part.pods.iter().map(|pod| pod.id.clone()));
    let containers = all.iter().flat_map(|part| part.containers.iter().map(|c: &Container| c.id.clone()));
    (pods.collect(), containers.collect())
}

fn created(plugin: &TestPlugin) -> Vec<String> {
    let created = plugin.seen().into_iter().filter(|seen| seen.method == "CreateContainer");
    let id = |seen: super::plugin::Seen| {
        CreateContainerRequest::decode(seen.payload.as_slice()).unwrap().container.unwrap().id
    };
    created.map(id).collect()
}

/// Containers that are created while a plugin synchronizes are neither lost nor doubled, with or without another plugin.
#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_learns_of_each_container_once() {
    for with_other in [false, true] {
        let mut berth = Berth::start().await;
        let path = socket(&berth);
        let other = match with_other {
            true => Some(TestPlugin::connect(&path, "10", "other").await),
            false => None,
        };
        let pod = berth.run_pod(berth.pod_config("before")).await;
        let mut expected = vec![berth.run(&pod, sleeper("before")).await];
        berth.run_to_end(&pod, shell("ended", "true")).await;
        let (go, wait) = oneshot::channel();
        let mut wait = Some(wait);
        let late = TestPlugin::start(&path, "20", "late", move |method, _| {
            (method == "Synchronize").then(|| Reaction::Wait(wait.take().unwrap(), Vec::new()))
        })
        .await;
        late.until("Synchronize").await;
        let mut tasks = Vec::new();
        for number in 0..4 {
            let (mut runtime, pod) = (berth.runtime.clone(), pod.clone());
            let config = sleeper(&format!("during-{number}"));
            tasks.push(tokio::spawn(async move {
                let request = CreateContainerRequestOf(pod, config).request();
                runtime.create_container(request).await.unwrap().into_inner().container_id
            }));
        }
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        go.send(()).unwrap();
        for task in tasks {
            expected.push(task.await.unwrap());
        }
        expected.push(berth.run(&pod, sleeper("after")).await);
        let (pods, mut known) = synchronized(&late);
        assert_eq!(pods, std::slice::from_ref(&pod));
        known.extend(created(&late));
        known.sort();
        expected.sort();
        assert_eq!(known, expected, "with another plugin: {with_other}");
        drop(other);
        assert_eq!(berth.clean().await, Vec::<String>::new());
    }
}

struct CreateContainerRequestOf(String, ContainerConfig);

impl CreateContainerRequestOf {
    fn request(self) -> berth_proto::v1::CreateContainerRequest {
        berth_proto::v1::CreateContainerRequest {
            pod_sandbox_id: self.0,
            config: Some(self.1),
            sandbox_config: None,
        }
    }
}

/// Plugins connect and disconnect while containers are created: each plugin that stays gets every container once.
#[tokio::test(flavor = "multi_thread")]
async fn plugins_that_connect_under_load_miss_nothing() {
    let mut berth = Berth::start().await;
    let path = socket(&berth);
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let (mut runtime, target) = (berth.runtime.clone(), pod.clone());
    let creations = tokio::spawn(async move {
        let mut ids = Vec::new();
        for number in 0..30 {
            let request = CreateContainerRequestOf(target.clone(), sleeper(&format!("c{number}"))).request();
            ids.push(runtime.create_container(request).await.unwrap().into_inner().container_id);
        }
        ids
    });
    let mut plugins = Vec::new();
    for index in ["10", "20", "30"] {
        plugins.push(TestPlugin::connect(&path, index, "kept").await);
        drop(TestPlugin::connect(&path, "50", "short").await);
    }
    let mut expected = creations.await.unwrap();
    expected.sort();
    for plugin in &plugins {
        let (_, mut known) = synchronized(plugin);
        known.extend(created(plugin));
        known.sort();
        assert_eq!(known, expected);
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_daemon_accepts_plugins_and_sends_the_pods_that_run() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let id = berth.run(&pod, sleeper("c")).await;
    let mut first = TestPlugin::connect(&socket(&berth), "10", "all").await;
    berth.restart().await;
    first.closed().await;
    let plugin = TestPlugin::connect(&socket(&berth), "10", "all").await;
    assert_eq!(synchronized(&plugin), (vec![pod.clone()], vec![id.clone()]));
    plugin.forget();
    berth.remove_pod(&pod).await;
    assert_eq!(plugin.calls(), ["StopContainer", "StopPodSandbox", "RemoveContainer", "RemovePodSandbox"]);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
