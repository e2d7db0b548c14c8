//! Many pods start together.

use crate::support::Berth;
use crate::support::net::Namespace;
use crate::support::node::{Node, bridge, ports};
use berth_proto::v1::{PodSandboxConfig, RunPodSandboxRequest};
use serde_json::json;

use super::with_ports;

/// Runs pods, `at_once` at a time. Returns the errors.
async fn run_together(berth: &Berth, configs: Vec<PodSandboxConfig>, at_once: usize) -> Vec<String> {
    let mut errors = Vec::new();
    let mut rest = configs.into_iter().peekable();
    while rest.peek().is_some() {
        let some: Vec<_> = rest.by_ref().take(at_once).collect();
        let calls = some.into_iter().map(|config| {
            let mut runtime = berth.runtime.clone();
            let request = RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
            tokio::spawn(async move { runtime.run_pod_sandbox(request).await })
        });
        for call in calls.collect::<Vec<_>>() {
            errors.extend(call.await.unwrap().err().map(|status| status.message().to_owned()));
        }
    }
    errors
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_with_host_ports_start_in_parallel() {
    let node = Node::with(json!([bridge(&json!({})), ports()])).await;
    let configs =
        (0..48).map(|number| with_ports(&node.berth, &format!("pod{number}"), [20000 + number])).collect();
    assert_eq!(run_together(&node.berth, configs, 8).await, Vec::<String>::new());
    let rules = node.netns.sh("nft list map inet berth ports4");
    for number in 0..48 {
        assert!(rules.contains(&format!("tcp . {}", 20000 + number)), "{rules}");
    }
    node.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn macvlan_pods_on_the_default_route_link_start_in_parallel() {
    let ipam = json!({ "type": "host-local", "ranges": [[{ "subnet": "10.66.0.0/24", "rangeStart": "10.66.0.20" }]] });
    let limits = json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } });
    let node = Node::with(json!([{ "type": "macvlan", "mode": "bridge", "ipam": ipam }, limits])).await;
    let lan_host = Namespace::beside(&node.netns, "lan0", "10.66.0", "fd66");
    node.netns.sh("ip route add default via 10.66.0.2");
    let configs = (0..32).map(|number| node.berth.pod_config(&format!("pod{number}"))).collect();
    assert_eq!(run_together(&node.berth, configs, 8).await, Vec::<String>::new());
    drop(lan_host);
    node.clean().await;
}
