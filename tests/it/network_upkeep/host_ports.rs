//! Host ports: thousands of one pod, and those of one address of the host.

use crate::support::node::{Node, bridge, ports};
use berth_proto::v1::{PodSandboxConfig, PortMapping};
use serde_json::json;

use super::{NamedServer, port, with_ports};

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_can_have_thousands_of_host_ports() {
    let mut node = Node::with(json!([bridge(&json!({})), ports()])).await;
    for count in [270, 3000] {
        let config = with_ports(&node.berth, &format!("many{count}"), 20000..20000 + count);
        let pod = node.pod_of(config).await;
        let mapped = || node.netns.sh("nft list table inet berth").matches("tcp . 2").count();
        assert_eq!(
            mapped(),
            usize::try_from(count).unwrap() * 2,
            "the ports must be mapped in both address families"
        );
        // A pod that requests a used port is refused with the id of the pod that has it, and gets none of its other
        // ports.
        let taken = with_ports(&node.berth, "taken", (19000..19300).chain([20000 + count - 1]));
        let refused = node.berth.try_run_pod(taken).await.unwrap_err();
        assert!(refused.message().contains(&pod.id), "{refused}");
        assert!(!node.netns.sh("nft list table inet berth").contains("tcp . 19"));
        node.berth.remove_pod(&pod.id).await;
        assert_eq!(node.netns.sh("nft list table inet berth").matches("tcp . 2").count(), 0);
    }
    node.clean().await;
}

fn at(host_ip: &str, host_port: i32) -> PortMapping {
    PortMapping { host_ip: host_ip.to_owned(), ..port(host_port) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_port_of_one_address_precedes_one_of_all_addresses() {
    let mut node = Node::with(json!([bridge(&json!({})), ports()])).await;
    let outside = node.outside();
    let with = |name: &str, ports: Vec<PortMapping>| PodSandboxConfig {
        port_mappings: ports,
        ..node.berth.pod_config(name)
    };
    let (all, one) = (with("all", vec![at("", 20000)]), with("one", vec![at("198.51.100.1", 20000)]));
    let refused = [
        with("same", vec![at("198.51.100.1", 20000)]),
        with("any", vec![at("0.0.0.0", 20000)]),
        with("any6", vec![at("::", 20000)]),
        with("twice", vec![port(20001), PortMapping { container_port: 81, ..port(20001) }]),
    ];
    let (all, one) = (node.pod_of(all).await, node.pod_of(one).await);
    let servers = [
        NamedServer::start(&all.netns, "0.0.0.0", 80, "all"),
        NamedServer::start(&one.netns, "0.0.0.0", 80, "one"),
    ];
    assert_eq!(servers[0].answers(&outside, "198.51.100.1", 20000), "one");
    assert_eq!(servers[0].answers(&node.netns, "127.0.0.1", 20000), "all");
    for config in refused {
        let name = config.metadata.clone().unwrap().name;
        let error = node.berth.try_run_pod(config).await.unwrap_err();
        let names_owner = [&all.id, &one.id].iter().any(|id| error.message().contains(id.as_str()));
        assert!(names_owner || (name == "twice" && error.message().contains("20001")), "{name}: {error}");
    }
    node.berth.remove_pod(&one.id).await;
    assert_eq!(servers[0].answers(&outside, "198.51.100.1", 20000), "all");
    drop((servers, outside));
    node.clean().await;
}
