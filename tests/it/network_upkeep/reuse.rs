//! A pod gets the address or the host port of a removed pod, whose traces in caches must not disturb it.

use crate::support::net::Netns;
use crate::support::node::{Node, Pod, bridge, ports};
use serde_json::{Value, json};

use super::{NamedServer, is_answered, node_with_two_addresses, with_ports};

/// Adds lan_host entries for the addresses of a pod, so that a host on the bridge does not resolve them again.
fn cache_neighbour_entries(netns: &Netns, link: &str, pod: &Pod) {
    let mac = pod.netns.sh("cat /sys/class/net/eth0/address");
    for ip in &pod.ips {
        netns.sh(&format!("ip neigh replace {ip} lladdr {mac} nud reachable dev {link}"));
    }
}

async fn reused_address_is_reachable(keys: Value, link: &str, mac: Option<&str>) {
    let mut node = node_with_two_addresses(keys).await;
    let first = node.pod("first").await;
    let other = node.pod("other").await;
    let mut before = first;
    for round in 0..3 {
        for (from, by) in [(&node.netns, link), (&other.netns, "eth0")] {
            for ip in &before.ips {
                assert!(is_answered(from, ip), "round {round}: {ip} from {by}");
            }
            cache_neighbour_entries(from, by, &before);
        }
        let ips = before.ips.clone();
        node.berth.remove_pod(&before.id).await;
        let mut config = node.berth.pod_config(&format!("again{round}"));
        config.annotations.extend(mac.map(|mac| ("berth.io/mac".to_owned(), mac.to_owned())));
        let again = node.pod_of(config).await;
        assert_eq!(again.ips, ips, "the freed address must be used again");
        for (from, by) in [(&node.netns, link), (&other.netns, "eth0")] {
            for ip in &again.ips {
                assert!(
                    is_answered(from, ip),
                    "round {round}: {ip} is not reached after its reuse, from {by}"
                );
            }
        }
        before = again;
    }
    node.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reused_address_is_reachable_immediately() {
    reused_address_is_reachable(json!({}), "paths0", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reused_address_is_reachable_immediately_with_macspoofchk() {
    reused_address_is_reachable(json!({ "macspoofchk": true, "hairpinMode": true }), "paths0", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reused_address_with_a_reused_mac_is_reachable_immediately() {
    let keys = json!({ "capabilities": { "mac": true } });
    reused_address_is_reachable(keys, "paths0", Some("02:00:00:00:66:01")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_a_removed_pod_reaches_the_next_pod_with_its_host_port() {
    let mut node = Node::with(json!([bridge(&json!({})), ports()])).await;
    let outside = node.outside();
    let config = with_ports(&node.berth, "gone", [20000]);
    let gone = node.pod_of(config).await;
    // Otherwise the kernel keeps the pod's namespace while it tries to notify the client.
    gone.netns.sh("echo 1 > /proc/sys/net/ipv4/tcp_orphan_retries");
    let server = NamedServer::start(&gone.netns, "0.0.0.0", 80, "holds");
    // The connection is open when the pod is removed. The client uses the same source port again.
    let client = "import socket,sys
s=socket.socket()
s.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1)
s.settimeout(10)
s.bind(('0.0.0.0',4567))
s.connect(('198.51.100.1',20000))
print(s.recv(9).decode(),flush=True)
if sys.argv[1]=='stays':
    import os,time,struct
    s.setsockopt(socket.SOL_SOCKET,socket.SO_LINGER,struct.pack('ii',1,0))
    sys.stdin.read()";
    let mut first = outside.command("python3");
    first
        .args(["-c", client, "stays"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped());
    let mut first = first.spawn().unwrap();
    let mut received = [0_u8; 6];
    std::io::Read::read_exact(first.stdout.as_mut().unwrap(), &mut received).unwrap();
    assert_eq!(&received, b"holds\n");
    // The client is disconnected first, so that the end of the connection reaches neither side.
    outside.sh("ip link set far0 down");
    drop(first.kill());
    drop(first.wait());
    drop(server);
    node.berth.remove_pod(&gone.id).await;
    outside.sh("ip link set far0 up; ip addr add fd99::2/64 dev far0 nodad 2>/dev/null || true");
    let config = with_ports(&node.berth, "next", [20000]);
    let next = node.pod_of(config).await;
    let server = NamedServer::start(&next.netns, "0.0.0.0", 80, "next");
    let again = outside.command("python3").args(["-c", client, "once"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&again.stdout), "next\n", "{again:?}");
    drop((server, outside));
    node.clean().await;
}
