//! What a user can rely on of the ways that packets take: from a pod to the outside and back, to ports of the host from
//! everywhere, between pods on a shared link, in both families, with limits that hold as iperf3 measures them.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test stops at the first surprise")]

#[path = "support/net.rs"]
mod net;
#[path = "support/node.rs"]
mod node;
mod support;

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

use berth_proto::v1::{PodSandboxConfig, PodSandboxStatusRequest, PortMapping, Protocol};
use net::{Namespace, Place, traffic};
use node::{Node, Pod, bridge, ports};
use serde_json::{Value, json};
use support::Berth;

/// Where iperf3 listens.
const PORT: u16 = 5201;
/// The port of the host that leads there.
const HOST_PORT: &str = "18080";

/// Enough to see who is seen.
const LITTLE: [&str; 2] = ["--bytes", "64K"];

/// Whom a server sees when a client connects to an address.
fn seen(server: &Place, address: &str, client: &Place) -> Option<String> {
    let options = [&["--client", address][..], &LITTLE].concat();
    traffic(server, PORT, client, &options).map(|traffic| traffic.client)
}

/// The same to the port of the host.
fn seen_by_port(server: &Pod, address: &str, client: &Place, more: &[&str]) -> Option<String> {
    let options = [&["--client", address, "--port", HOST_PORT][..], &LITTLE, more].concat();
    traffic(&server.place, PORT, client, &options).map(|traffic| traffic.client)
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_seen_outside_as_the_node_and_by_each_other_as_themselves() {
    let mut node = Node::with(json!([bridge(&json!({}))])).await;
    let outside = node.outside();
    let (one, other) = (node.pod("one").await, node.pod("other").await);
    for (v6, far, near) in [(false, "198.51.100.2", "198.51.100.1"), (true, "fd99::2", "fd99::1")] {
        assert_eq!(seen(&outside, far, &one.place).as_deref(), Some(near), "the outside sees the node");
        assert_eq!(
            seen(&other.place, other.ip(v6), &one.place).as_deref(),
            Some(one.ip(v6)),
            "pods see pods"
        );
        assert!(seen(&one.place, one.ip(v6), &node.place).is_some(), "the node reaches its pods");
    }
    drop(outside);
    node.clean().await;
}

/// TCP and UDP: iperf3 needs a connection beside its datagrams.
fn mapped(berth: &Berth, name: &str, host_ip: &str) -> PodSandboxConfig {
    let mapping = |protocol: Protocol| PortMapping {
        protocol: protocol.into(),
        container_port: PORT.into(),
        host_port: HOST_PORT.parse().unwrap(),
        host_ip: host_ip.to_owned(),
    };
    PodSandboxConfig {
        port_mappings: vec![mapping(Protocol::Tcp), mapping(Protocol::Udp)],
        ..berth.pod_config(name)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_of_the_host_leads_to_the_pod_from_everywhere() {
    // Where the kernel shows frames of bridges to netfilter, what a pod sends to itself comes back by the port that it
    // left by.
    let mut node = Node::with(json!([bridge(&json!({ "hairpinMode": true })), ports()])).await;
    let outside = node.outside();
    let config = mapped(&node.berth, "server", "");
    let (server, other) = (node.pod_of(config).await, node.pod("other").await);
    // Who comes from outside is seen as such.
    let from_outside = seen_by_port(&server, "198.51.100.1", &outside, &[]);
    assert_eq!(from_outside.as_deref(), Some("198.51.100.2"));
    assert_eq!(seen_by_port(&server, "fd99::1", &outside, &[]).as_deref(), Some("fd99::2"));
    assert_eq!(seen_by_port(&server, "198.51.100.1", &outside, &["--udp"]).as_deref(), Some("198.51.100.2"));
    for (whose, client) in
        [("the node", &node.place), ("another pod", &other.place), ("itself", &server.place)]
    {
        assert!(seen_by_port(&server, "198.51.100.1", client, &[]).is_some(), "IPv4 from {whose}");
        assert!(seen_by_port(&server, "fd99::1", client, &[]).is_some(), "IPv6 from {whose}");
    }
    assert!(seen_by_port(&server, "127.0.0.1", &node.place, &[]).is_some(), "localhost of the node");
    // Nobody is behind it any more, and whoever comes next has it.
    node.berth.remove_pod(&server.id).await;
    let gone = node.place.try_sh(&format!("busybox nc -w 2 198.51.100.1 {HOST_PORT} </dev/null"));
    assert!(!gone.status.success(), "{gone:?}");
    let config = mapped(&node.berth, "next", "198.51.100.1");
    let next = node.pod_of(config).await;
    assert_eq!(seen_by_port(&next, "198.51.100.1", &outside, &[]).as_deref(), Some("198.51.100.2"));
    let localhost = node.place.try_sh(&format!("busybox nc -w 2 127.0.0.1 {HOST_PORT} </dev/null"));
    assert!(!localhost.status.success(), "only one address of the host leads there: {localhost:?}");
    drop(outside);
    node.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_of_the_host_is_there_after_a_restart() {
    let mut node = Node::with(json!([bridge(&json!({})), ports()])).await;
    let outside = node.outside();
    let config = mapped(&node.berth, "server", "");
    let server = node.pod_of(config).await;
    node.berth.kill();
    assert!(seen_by_port(&server, "198.51.100.1", &outside, &[]).is_some(), "it needs no daemon");
    node.berth.restart().await;
    assert!(seen_by_port(&server, "198.51.100.1", &outside, &[]).is_some());
    drop(outside);
    node.clean().await;
}

/// The rules of pods.
fn rules(place: &Place) -> String {
    place.sh("for family in inet bridge; do nft list table $family berth || true; done")
}

async fn are_back(place: &Place, before: &str) {
    let until = Instant::now() + Duration::from_secs(30);
    while rules(place) != before {
        assert!(Instant::now() < until, "{}\nbefore:\n{before}", rules(place));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_that_somebody_flushes_are_put_back() {
    let mut node = Node::with(json!([bridge(&json!({ "macspoofchk": true })), ports()])).await;
    let outside = node.outside();
    let config = mapped(&node.berth, "server", "");
    let server = node.pod_of(config).await;
    let gone = node.pod("gone").await;
    node.berth.remove_pod(&gone.id).await;
    let before = rules(&node.place);
    assert!(before.contains("table inet berth") && before.contains("table bridge berth"), "{before}");
    // As a reload of nftables.service does it, while the daemon runs and while it does not.
    node.place.sh("nft flush ruleset");
    are_back(&node.place, &before).await;
    assert!(seen_by_port(&server, "198.51.100.1", &outside, &[]).is_some());
    assert_eq!(seen(&outside, "198.51.100.2", &server.place).as_deref(), Some("198.51.100.1"));
    node.berth.kill();
    node.place.sh("nft flush ruleset");
    node.berth.restart().await;
    are_back(&node.place, &before).await;
    assert!(seen_by_port(&server, "198.51.100.1", &outside, &[]).is_some());
    drop(outside);
    node.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_share_a_link_with_hosts_outside() {
    let ipam = json!({ "type": "host-local",
        "ranges": [[{ "subnet": "10.66.0.0/24", "rangeStart": "10.66.0.20" }], [{ "subnet": "fd66::/64", "rangeStart": "fd66::20" }]] });
    let mut node =
        Node::with(json!([{ "type": "macvlan", "master": "lan0", "mode": "bridge", "ipam": ipam }])).await;
    let neighbour = Namespace::beside(&node.place, "lan0", "10.66.0", "fd66");
    let (one, other) = (node.pod("one").await, node.pod("other").await);
    for (v6, far) in [(false, "10.66.0.2"), (true, "fd66::2")] {
        assert_eq!(
            seen(&neighbour, far, &one.place).as_deref(),
            Some(one.ip(v6)),
            "the neighbour sees the pod"
        );
        assert_eq!(
            seen(&one.place, one.ip(v6), &neighbour).as_deref(),
            Some(far),
            "and the pod the neighbour"
        );
        assert_eq!(
            seen(&other.place, other.ip(v6), &one.place).as_deref(),
            Some(one.ip(v6)),
            "pods see pods"
        );
    }
    node.berth.remove_pod(&one.id).await;
    node.berth.remove_pod(&other.id).await;
    drop(neighbour);
    node.clean().await;
}

/// A server of addresses in the network of a node's neighbour.
struct Lender {
    server: std::process::Child,
    leases: tempfile::NamedTempFile,
}

impl Lender {
    fn on(neighbour: &Namespace) -> Self {
        let leases = tempfile::NamedTempFile::new().unwrap();
        let mut command = neighbour.command("dnsmasq");
        command.arg(format!("--dhcp-leasefile={}", leases.path().display()));
        command.args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--port=0",
            "--interface=far0",
            "--no-ping",
        ]);
        command.args([
            "--bind-interfaces",
            "--dhcp-authoritative",
            "--user=root",
            "--pid-file=",
            "--log-facility=-",
        ]);
        command.arg("--dhcp-range=10.66.0.100,10.66.0.110,255.255.255.0,2m");
        let silent = std::process::Stdio::null;
        Self { server: command.stdin(silent()).stderr(silent()).spawn().unwrap(), leases }
    }

    fn lends(&self, address: &str) -> bool {
        fs::read_to_string(self.leases.path()).unwrap().contains(&format!(" {address} "))
    }
}

impl Drop for Lender {
    fn drop(&mut self) {
        drop(self.server.kill());
        drop(self.server.wait());
    }
}

/// A pod has what the network's own server lends it, over a restart of the daemon, and gives it back.
async fn is_lent_an_address(plugin: Value, on_the_node: &str) {
    let mut node = Node::with(json!([plugin])).await;
    let neighbour = Namespace::beside(&node.place, "lan0", "10.66.0", "fd66");
    node.place.sh(on_the_node);
    let lender = Lender::on(&neighbour);
    let pod = node.pod("lent").await;
    let address = pod.ip(false).to_owned();
    assert!(address.starts_with("10.66.0.1") && lender.lends(&address), "{address}");
    assert_eq!(seen(&neighbour, "10.66.0.2", &pod.place).as_deref(), Some(&*address));
    node.berth.kill();
    node.berth.restart().await;
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: false };
    let status = node.berth.runtime.pod_sandbox_status(request).await.unwrap().into_inner().status.unwrap();
    assert_eq!(status.network.unwrap().ip, address);
    node.berth.remove_pod(&pod.id).await;
    let until = Instant::now() + Duration::from_secs(30);
    while lender.lends(&address) {
        assert!(Instant::now() < until, "{address} was not given back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(lender);
    drop(neighbour);
    node.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_on_a_shared_link_is_lent_an_address() {
    let plugin = json!({ "type": "macvlan", "master": "lan0", "ipam": { "type": "dhcp" } });
    is_lent_an_address(plugin, "true").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_on_a_bridge_of_the_lan_is_lent_an_address() {
    let plugin = json!({ "type": "bridge", "bridge": "lan", "ipam": { "type": "dhcp" } });
    is_lent_an_address(
        plugin,
        "ip link add lan type bridge; ip link set lan up; ip link set lan0 master lan",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn packets_are_as_large_as_the_network_says() {
    let mut node = Node::with(json!([bridge(&json!({ "mtu": 1400 }))])).await;
    let (one, other) = (node.pod("one").await, node.pod("other").await);
    for pod in [&one, &other] {
        assert!(pod.place.sh("ip -o link show eth0").contains("mtu 1400 "));
    }
    // TCP keeps to it: the segments of a connection are what it leaves, less the headers.
    let script = format!("ss -Htin 'dport = :{PORT}'");
    let options = ["--client", other.ip(false), "--time", "3"];
    let (traffic, sizes) = std::thread::scope(|scope| {
        let running = scope.spawn(|| traffic(&other.place, PORT, &one.place, &options));
        let mut sizes = String::new();
        while !running.is_finished() && !sizes.contains("advmss:") {
            sizes = one.place.sh(&script);
            std::thread::sleep(Duration::from_millis(50));
        }
        (running.join().unwrap(), sizes)
    });
    assert!(traffic.is_some());
    assert!(sizes.contains("pmtu:1400") && sizes.contains("advmss:1348"), "{sizes}");
    node.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_traffic_hold() {
    let limits = json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } });
    let mut node = Node::with(json!([bridge(&json!({})), limits])).await;
    let outside = node.outside();
    let config = PodSandboxConfig {
        annotations: HashMap::from([
            ("kubernetes.io/ingress-bandwidth".to_owned(), "20M".to_owned()),
            ("kubernetes.io/egress-bandwidth".to_owned(), "8M".to_owned()),
        ]),
        ..node.berth.pod_config("limited")
    };
    let limited = node.pod_of(config).await;
    let free = node.pod("free").await;
    // What may go at once at the beginning is not counted.
    let options = ["--client", "198.51.100.2", "--omit", "2", "--time", "5"];
    for (way, more, limit) in [("to the pod", &["--reverse"][..], 20e6), ("from the pod", &[], 8e6)] {
        let rate = traffic(&outside, PORT, &limited.place, &[&options[..], more].concat()).unwrap().rate;
        assert!((rate / limit - 1.0).abs() < 0.15, "{way}: {rate:.0} of {limit:.0} bits a second");
        let rate = traffic(&outside, PORT, &free.place, &[&options[..], more].concat()).unwrap().rate;
        assert!(rate > 2.0 * limit, "{way}, without a limit: {rate:.0} bits a second");
    }
    drop(outside);
    node.clean().await;
    // And the devices of limits are gone with the pods, which `clean` has seen.
}
