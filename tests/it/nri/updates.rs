//! Limits that plugins change while containers run, and evictions.

use std::fs;

use berth_proto::nri::*;
use berth_proto::v1::{LinuxContainerResources, UpdateContainerResourcesRequest};
use prost::Message;

use super::plugin::{Reaction, TestPlugin};
use super::socket;
use crate::support::{Berth, is_v2, sleeper};

fn update(id: &str, shares: u64, pids: Option<i64>, ignore_failure: bool) -> ContainerUpdate {
    ContainerUpdate {
        container_id: id.to_owned(),
        linux: Some(LinuxContainerUpdate {
            resources: Some(LinuxResources {
                cpu: Some(LinuxCpu { shares: Some(OptionalUInt64 { value: shares }), ..LinuxCpu::default() }),
                pids: pids.map(|limit| LinuxPids { limit }),
                ..LinuxResources::default()
            }),
        }),
        ignore_failure,
    }
}

async fn shares(berth: &mut Berth, id: &str) -> i64 {
    berth.status(id).await.resources.unwrap().linux.unwrap().cpu_shares
}

async fn pids(berth: &mut Berth, id: &str) -> String {
    let info = berth.info(id).await;
    let cgroup = info["cgroup"].as_str().unwrap();
    let path = match is_v2() {
        true => format!("/sys/fs/cgroup{cgroup}/pids.max"),
        false => format!("/sys/fs/cgroup/pids{cgroup}/pids.max"),
    };
    fs::read_to_string(path).unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_changes_and_evicts_containers_at_any_time() {
    let mut berth = Berth::start().await;
    let plugin = TestPlugin::connect(&socket(&berth), "10", "p").await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let (kept, evicted) = (berth.run(&pod, sleeper("kept")).await, berth.run(&pod, sleeper("evicted")).await);
    let request = UpdateContainersRequest {
        update: vec![
            update(&kept, 300, Some(66), false),
            update("unknown", 300, None, false),
            update("ignored", 300, None, true),
        ],
        evict: vec![ContainerEviction { container_id: evicted.clone(), reason: "for a test".to_owned() }],
    };
    assert_eq!(plugin.update(request).await, ["unknown"]);
    assert_eq!(shares(&mut berth, &kept).await, 300);
    assert_eq!(pids(&mut berth, &kept).await, "66");
    berth.wait_exited(&evicted).await;
    plugin.until("StopContainer").await;
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_to_events_change_other_containers() {
    let mut berth = Berth::start().await;
    let target = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
    let id = target.clone();
    let plugin = TestPlugin::reacting(&socket(&berth), "10", "p", move |method, payload| {
        let id = id.lock().unwrap().clone();
        if id.is_empty() {
            return None;
        }
        match method {
            "CreateContainer" => Some(Reaction::answer(&CreateContainerResponse {
                update: vec![update(&id, 201, None, false)],
                ..CreateContainerResponse::default()
            })),
            "StopContainer" => {
                Some(Reaction::answer(&StopContainerResponse { update: vec![update(&id, 202, None, false)] }))
            }
            "UpdateContainer" => {
                let request = UpdateContainerRequest::decode(payload).unwrap();
                let own = request.container.unwrap().id;
                let asked = request.linux_resources.unwrap().cpu.unwrap().shares.unwrap().value;
                Some(Reaction::answer(&UpdateContainerResponse {
                    update: vec![update(&own, asked + 1, Some(44), false), update(&id, 203, None, false)],
                    evict: Vec::new(),
                }))
            }
            _ => None,
        }
    })
    .await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let other = berth.run(&pod, sleeper("other")).await;
    target.lock().unwrap().clone_from(&other);
    let id = berth.run(&pod, sleeper("c")).await;
    assert_eq!(shares(&mut berth, &other).await, 201);
    let request = UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(LinuxContainerResources { cpu_shares: 500, ..Default::default() }),
        ..Default::default()
    };
    berth.runtime.update_container_resources(request).await.unwrap();
    assert_eq!(shares(&mut berth, &id).await, 501, "the plugin changes the update");
    assert_eq!(pids(&mut berth, &id).await, "44");
    until_shares(&mut berth, &other, 203).await;
    berth.stop_container(&id, 10).await;
    until_shares(&mut berth, &other, 202).await;
    drop(plugin);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

async fn until_shares(berth: &mut Berth, id: &str, expected: i64) {
    let until = std::time::Instant::now() + crate::support::PATIENCE;
    while shares(berth, id).await != expected {
        assert!(std::time::Instant::now() < until, "{}", shares(berth, id).await);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_changes_containers_when_it_synchronizes() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let id = berth.run(&pod, sleeper("c")).await;
    let known = id.clone();
    let _plugin = TestPlugin::reacting(&socket(&berth), "10", "p", move |method, _| {
        (method == "Synchronize").then(|| {
            Reaction::answer(&SynchronizeResponse {
                update: vec![update(&known, 345, None, false)],
                more: false,
            })
        })
    })
    .await;
    until_shares(&mut berth, &id, 345).await;
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
