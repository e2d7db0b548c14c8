//! Other programs change what berth has created on the host. Changes are repaired or reported.

use std::fs;

use crate::support::net::Netns;
use crate::support::node::{Node, Pod, bridge, ports};
use serde_json::json;

use super::{is_answered, network_condition, until, with_ports};

/// Changes that other programs make on the host, each with a command that succeeds when berth has repaired it.
const CHANGES: [(&str, &str); 8] = [
    ("ip addr flush dev paths0", "ip -o addr show dev paths0 | grep -q 10.66.0.1/24"),
    ("ip -6 addr flush dev paths0 scope global", "ip -o addr show dev paths0 | grep -q fd66::1/64"),
    ("ip addr del 10.66.0.1/24 dev paths0", "ip -o addr show dev paths0 | grep -q 10.66.0.1/24"),
    ("ip link set paths0 down", "ip -o link show dev paths0 | grep -q ',UP'"),
    ("echo 0 > /proc/sys/net/ipv4/ip_forward", "grep -q 1 /proc/sys/net/ipv4/ip_forward"),
    ("echo 0 > /proc/sys/net/ipv6/conf/all/forwarding", "grep -q 1 /proc/sys/net/ipv6/conf/all/forwarding"),
    (
        "echo 0 > /proc/sys/net/ipv4/conf/paths0/forwarding",
        "grep -q 1 /proc/sys/net/ipv4/conf/paths0/forwarding",
    ),
    ("ip link del paths0", "ip -o addr show dev paths0 | grep -q 10.66.0.1/24"),
];

#[tokio::test(flavor = "multi_thread")]
async fn changes_to_the_bridge_are_repaired() {
    let mut node = Node::with(json!([bridge(&json!({})), ports()])).await;
    let outside = node.outside();
    let pod = node.pod("stays").await;
    let targets = ["198.51.100.2", "fd99::2", "10.66.0.1", "fd66::1"];
    let reaches = |pod: &Pod| targets.iter().all(|to| is_answered(&pod.netns, to));
    // Packets that were sent before the repair can be lost.
    let ping = targets.map(|to| format!("busybox ping -c 1 -W 1 {to}")).join(" && ");
    let reaches_again = |pod: &Pod| pod.netns.try_sh(&ping).status.success();
    assert!(reaches(&pod));
    for (number, (change, repaired)) in CHANGES.into_iter().enumerate() {
        node.netns.sh(change);
        // Both a new pod and an existing pod have a network.
        let next = node.pod(&format!("next{number}")).await;
        assert!(node.netns.try_sh(repaired).status.success(), "{change}");
        assert!(reaches(&next), "{change}");
        until(change, async || reaches_again(&pod)).await;
        // The repair also happens without a new pod.
        node.netns.sh(change);
        until(change, async || node.netns.try_sh(repaired).status.success() && reaches_again(&pod)).await;
        assert!(network_condition(&mut node.berth).await.0, "{change}");
        node.berth.remove_pod(&next.id).await;
    }
    // Changes while the daemon does not run are repaired at its start.
    for (change, repaired) in CHANGES {
        node.berth.kill();
        node.netns.sh(change);
        node.berth.restart().await;
        until(change, async || node.netns.try_sh(repaired).status.success() && reaches_again(&pod)).await;
    }
    drop(outside);
    node.clean().await;
}

/// An administrator disconnects one pod's port: the pod gets it back, and the other pod keeps its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_single_port_that_is_disconnected_is_connected_again() {
    let mut node = Node::with(json!([bridge(&json!({ "hairpinMode": true }))])).await;
    let pod = node.pod("disconnected").await;
    let other = node.pod("other").await;
    let port = format!("bv{}", &pod.id[..13]);
    let connected = format!("ip -o link show dev {port} | grep ',UP' | grep -q 'master paths0'");
    let ping = "busybox ping -c 1 -W 1 10.66.0.1 && busybox ping -c 1 -W 1 fd66::1";
    for change in ["nomaster", "down", "nomaster down"] {
        node.netns.sh(&format!("ip link set {port} {change}"));
        until(change, async || {
            node.netns.try_sh(&connected).status.success() && pod.netns.try_sh(ping).status.success()
        })
        .await;
        assert!(is_answered(&other.netns, "10.66.0.1"), "{change}");
        node.netns.sh(&format!("bridge -d link show dev {port} | grep -q 'hairpin on'"));
    }
    node.berth.remove_pod(&pod.id).await;
    node.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_that_cannot_be_repaired_is_reported() {
    let mut node = Node::with(json!([bridge(&json!({}))])).await;
    let pod = node.pod("stays").await;
    // Another program's address is in conflict. berth does not remove it.
    node.netns.sh("echo 1 > /proc/sys/net/ipv4/conf/paths0/promote_secondaries
         ip addr add 10.66.0.9/24 dev paths0; ip addr del 10.66.0.1/24 dev paths0");
    until("the conflict is not reported", async || {
        let (ready, why) = network_condition(&mut node.berth).await;
        !ready && why.contains("paths0") && why.contains("10.66.0.9/24")
    })
    .await;
    let refused = node.berth.try_run_pod(node.berth.pod_config("refused")).await.unwrap_err();
    assert!(refused.message().contains("10.66.0.9/24"), "{refused}");
    node.netns.sh("ip addr del 10.66.0.9/24 dev paths0");
    until("the condition does not become ready again", async || network_condition(&mut node.berth).await.0)
        .await;
    assert!(is_answered(&node.netns, pod.ip(false)));
    node.clean().await;
}

/// Returns the nftables rules of pods.
fn rules(netns: &Netns) -> String {
    netns.sh("for family in inet bridge; do nft list table $family berth || true; done")
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_nftables_rules_are_restored() {
    let mut node = Node::with(json!([bridge(&json!({ "macspoofchk": true })), ports()])).await;
    let config = with_ports(&node.berth, "server", [20000, 20001]);
    let server = node.pod_of(config).await;
    let before = rules(&node.netns);
    let handle = |chain: &str| {
        format!("$(nft -a list chain inet berth {chain} | sed -n 's/.*# handle //p' | sed -n 2p)")
    };
    for change in [
        "nft flush table inet berth".to_owned(),
        "nft flush table bridge berth".to_owned(),
        "nft flush ruleset".to_owned(),
        "nft delete table inet berth".to_owned(),
        "nft flush chain inet berth ports".to_owned(),
        format!("nft delete rule inet berth ports handle {}", handle("ports")),
        format!("nft delete rule inet berth hairpin handle {}", handle("hairpin")),
        "nft delete element inet berth ports4 '{ tcp . 20001 }'".to_owned(),
        "nft flush map inet berth ports4".to_owned(),
        format!("nft delete element inet berth masquerade4 '{{ {} }}'", server.ip(false)),
        "nft flush set bridge berth guarded".to_owned(),
    ] {
        node.netns.sh(&change);
        until(&change, async || rules(&node.netns) == before).await;
    }
    // Tables that other programs add and delete have no effect on berth's rules.
    node.netns.sh("nft add table inet other; nft add chain inet other c; nft delete table inet other");
    for change in ["nft flush table inet berth", "nft delete element inet berth ports4 '{ tcp . 20001 }'"] {
        node.berth.kill();
        node.netns.sh(change);
        node.berth.restart().await;
        until(change, async || rules(&node.netns) == before).await;
    }
    node.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_leftover_elements_are_freed_at_the_start() {
    let mut node = Node::with(json!([bridge(&json!({})), ports()])).await;
    let config = with_ports(&node.berth, "lives", [20000]);
    let lives = node.pod_of(config).await;
    node.berth.kill();
    let mut left = String::new();
    for number in 0..20_000_u32 {
        let (gone, ip) = (number / 4, std::net::Ipv4Addr::from(0x0a42_4000 + number));
        left.push_str(&format!(
            "add element inet berth ports4 {{ udp . {} comment \"paths {gone:064x} eth0\" : {ip} . 80 }}\n",
            30_000 + number
        ));
    }
    let file = node.berth.path("leftovers");
    fs::write(&file, left).unwrap();
    node.netns.sh(&format!("nft -f {}", file.display()));
    node.berth.restart().await;
    until("the leftover elements are not freed", async || {
        let rules = node.netns.sh("nft list map inet berth ports4");
        !rules.contains("udp") && rules.contains("tcp . 20000")
    })
    .await;
    assert!(is_answered(&node.netns, lives.ip(false)));
    node.clean().await;
}
