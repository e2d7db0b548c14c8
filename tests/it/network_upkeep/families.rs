//! A network with one IP version, and a change of the built-in network's bridge.

use std::fs;

use crate::support::Berth;
use crate::support::net::Netns;
use crate::support::node::{Node, bridge, ports};
use berth_proto::v1::RemovePodSandboxRequest;
use serde_json::json;

use super::{NamedServer, is_answered, with_ports};

#[tokio::test(flavor = "multi_thread")]
async fn renaming_the_built_in_bridge_removes_the_old_one_with_its_last_pod() {
    let mut berth = Berth::start().await;
    let netns = Netns::of(berth.host_process());
    let old = berth.run_pod(with_ports(&berth, "old", [20000])).await;
    berth.kill();
    let file = berth.path("config.toml");
    let text = fs::read_to_string(&file).unwrap();
    let text = text.replace("testbr0", "another0").replace("10.77.0.0/24", "10.78.0.0/24");
    fs::write(&file, text.replace("fd77::/64", "fd78::/64").replace("/addresses", "/others")).unwrap();
    berth.restart().await;
    let new = berth.run_pod(with_ports(&berth, "new", [20001])).await;
    assert!(berth.pod_status(&new).await.network.unwrap().ip.starts_with("10.78.0."));
    let taken = berth.try_run_pod(with_ports(&berth, "taken", [20000])).await.unwrap_err();
    assert!(taken.message().contains(&old), "{taken}");
    berth.remove_pod(&old).await;
    let next = berth.run_pod(with_ports(&berth, "next", [20000])).await;
    let rules = netns.sh("nft list ruleset");
    assert!(!rules.contains("10.77.0.") || !rules.contains("elements = { 10.77"), "{rules}");
    assert!(!rules.contains(&old), "{rules}");
    let left: Vec<_> = fs::read_dir(berth.path("addresses/testbr0")).unwrap().flatten().collect();
    assert!(left.iter().all(|entry| !entry.file_name().to_string_lossy().starts_with("10.77")), "{left:?}");
    assert!(!netns.sh("ip -o link").contains("testbr0"), "the old bridge must be removed with its last pod");
    berth.remove_pod(&next).await;
    let mut request = RemovePodSandboxRequest::default();
    request.pod_sandbox_id.clone_from(&new);
    berth.runtime.remove_pod_sandbox(request).await.unwrap();
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_can_be_ipv6_only() {
    let mut plugin = bridge(&json!({ "hairpinMode": true }));
    plugin["ipam"] = json!({ "type": "host-local", "ranges": [[{ "subnet": "fd66::/64" }]], "routes": [{ "dst": "::/0" }] });
    let mut node = Node::with(json!([plugin, ports()])).await;
    let outside = node.outside();
    let config = with_ports(&node.berth, "six", [20000]);
    let pod = node.pod_of(config).await;
    assert_eq!(pod.ips, ["fd66::2"]);
    assert!(is_answered(&pod.netns, "fd99::2") && is_answered(&node.netns, "fd66::2"));
    let server = NamedServer::start(&pod.netns, "[::]", 80, "six");
    assert_eq!(server.answers(&outside, "fd99::1", 20000), "six");
    assert_eq!(server.answers(&node.netns, "fd99::1", 20000), "six");
    assert_eq!(server.answers(&pod.netns, "fd99::1", 20000), "six");
    drop((server, outside));
    node.clean().await;
}
