//! The paths of packets: from a pod to the outside and back, from everywhere to host ports, and between pods on a
//! shared link, in both address families, with bandwidth limits as iperf3 measures them.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

use crate::support::Berth;
use crate::support::net::{Namespace, Netns, traffic};
use crate::support::node::{Node, Pod, bridge, ports};
use berth_proto::v1::{PodSandboxConfig, PodSandboxStatusRequest, PortMapping, Protocol};
use serde_json::{Value, json};

/// The port on which iperf3 listens.
const PORT: u16 = 5201;
/// The host port that is forwarded to `PORT`.
const HOST_PORT: &str = "18080";

/// Enough traffic to see the client's address.
const LITTLE_TRAFFIC: [&str; 2] = ["--bytes", "64K"];

/// Connects to an address. Returns the client's address as the server sees it.
fn client_seen_by(server: &Netns, address: &str, client: &Netns) -> Option<String> {
    let options = [&["--client", address][..], &LITTLE_TRAFFIC].concat();
    traffic(server, PORT, client, &options).map(|traffic| traffic.client)
}

/// Connects to the host port of a pod. Returns the client's address as the server sees it.
fn client_seen_by_host_port(server: &Pod, address: &str, client: &Netns, more: &[&str]) -> Option<String> {
    let options = [&["--client", address, "--port", HOST_PORT][..], &LITTLE_TRAFFIC, more].concat();
    traffic(&server.netns, PORT, client, &options).map(|traffic| traffic.client)
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_masqueraded_to_the_outside_and_not_to_each_other() {
    let mut node = Node::with(json!([bridge(&json!({}))])).await;
    let outside = node.outside();
    let (one, other) = (node.pod("one").await, node.pod("other").await);
    for (v6, far, near) in [(false, "198.51.100.2", "198.51.100.1"), (true, "fd99::2", "fd99::1")] {
        assert_eq!(
            client_seen_by(&outside, far, &one.netns).as_deref(),
            Some(near),
            "the outside must see the node's address"
        );
        assert_eq!(
            client_seen_by(&other.netns, other.ip(v6), &one.netns).as_deref(),
            Some(one.ip(v6)),
            "pods must see each other's own addresses"
        );
        assert!(
            client_seen_by(&one.netns, one.ip(v6), &node.netns).is_some(),
            "the node must reach its pods"
        );
    }
    drop(outside);
    node.clean().await;
}

/// Maps TCP and UDP: iperf3 needs a TCP connection for its UDP tests.
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
async fn a_host_port_reaches_its_pod_from_outside_node_and_pods() {
    // The bridge needs hairpin mode where the kernel passes bridged frames to netfilter: a packet from a pod to its
    // own host port leaves by the port by which it arrived.
    let mut node = Node::with(json!([bridge(&json!({ "hairpinMode": true })), ports()])).await;
    let outside = node.outside();
    let config = mapped(&node.berth, "server", "");
    let (server, other) = (node.pod_of(config).await, node.pod("other").await);
    // A client from outside keeps its address.
    let from_outside = client_seen_by_host_port(&server, "198.51.100.1", &outside, &[]);
    assert_eq!(from_outside.as_deref(), Some("198.51.100.2"));
    assert_eq!(client_seen_by_host_port(&server, "fd99::1", &outside, &[]).as_deref(), Some("fd99::2"));
    assert_eq!(
        client_seen_by_host_port(&server, "198.51.100.1", &outside, &["--udp"]).as_deref(),
        Some("198.51.100.2")
    );
    for (origin, client) in
        [("the node", &node.netns), ("another pod", &other.netns), ("itself", &server.netns)]
    {
        assert!(
            client_seen_by_host_port(&server, "198.51.100.1", client, &[]).is_some(),
            "IPv4 from {origin}"
        );
        assert!(client_seen_by_host_port(&server, "fd99::1", client, &[]).is_some(), "IPv6 from {origin}");
    }
    assert!(
        client_seen_by_host_port(&server, "127.0.0.1", &node.netns, &[]).is_some(),
        "localhost of the node"
    );
    // After the pod is removed, the host port is closed and the next pod can have it.
    node.berth.remove_pod(&server.id).await;
    let gone = node.netns.try_sh(&format!("busybox nc -w 2 198.51.100.1 {HOST_PORT} </dev/null"));
    assert!(!gone.status.success(), "{gone:?}");
    let config = mapped(&node.berth, "next", "198.51.100.1");
    let next = node.pod_of(config).await;
    assert_eq!(
        client_seen_by_host_port(&next, "198.51.100.1", &outside, &[]).as_deref(),
        Some("198.51.100.2")
    );
    let localhost = node.netns.try_sh(&format!("busybox nc -w 2 127.0.0.1 {HOST_PORT} </dev/null"));
    assert!(
        !localhost.status.success(),
        "only the requested address of the host may be forwarded: {localhost:?}"
    );
    drop(outside);
    node.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_port_works_during_and_after_a_daemon_restart() {
    let mut node = Node::with(json!([bridge(&json!({})), ports()])).await;
    let outside = node.outside();
    let config = mapped(&node.berth, "server", "");
    let server = node.pod_of(config).await;
    node.berth.kill();
    assert!(
        client_seen_by_host_port(&server, "198.51.100.1", &outside, &[]).is_some(),
        "a host port must work while no daemon runs"
    );
    node.berth.restart().await;
    assert!(client_seen_by_host_port(&server, "198.51.100.1", &outside, &[]).is_some());
    drop(outside);
    node.clean().await;
}

/// Returns the nftables rules of pods.
fn rules(netns: &Netns) -> String {
    netns.sh("for family in inet bridge; do nft list table $family berth || true; done")
}

async fn wait_for_rules(netns: &Netns, before: &str) {
    let until = Instant::now() + Duration::from_secs(30);
    while rules(netns) != before {
        assert!(Instant::now() < until, "{}\nbefore:\n{before}", rules(netns));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flushed_nftables_rules_are_restored() {
    let mut node = Node::with(json!([bridge(&json!({ "macspoofchk": true })), ports()])).await;
    let outside = node.outside();
    let config = mapped(&node.berth, "server", "");
    let server = node.pod_of(config).await;
    let gone = node.pod("gone").await;
    node.berth.remove_pod(&gone.id).await;
    let before = rules(&node.netns);
    assert!(before.contains("table inet berth") && before.contains("table bridge berth"), "{before}");
    // A reload of nftables.service flushes all rules: once while the daemon runs and once while it does not.
    node.netns.sh("nft flush ruleset");
    wait_for_rules(&node.netns, &before).await;
    assert!(client_seen_by_host_port(&server, "198.51.100.1", &outside, &[]).is_some());
    assert_eq!(client_seen_by(&outside, "198.51.100.2", &server.netns).as_deref(), Some("198.51.100.1"));
    node.berth.kill();
    node.netns.sh("nft flush ruleset");
    node.berth.restart().await;
    wait_for_rules(&node.netns, &before).await;
    assert!(client_seen_by_host_port(&server, "198.51.100.1", &outside, &[]).is_some());
    drop(outside);
    node.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn macvlan_pods_and_lan_hosts_reach_each_other() {
    let ipam = json!({ "type": "host-local",
        "ranges": [[{ "subnet": "10.66.0.0/24", "rangeStart": "10.66.0.20" }], [{ "subnet": "fd66::/64", "rangeStart": "fd66::20" }]] });
    let mut node =
        Node::with(json!([{ "type": "macvlan", "master": "lan0", "mode": "bridge", "ipam": ipam }])).await;
    let lan_host = Namespace::beside(&node.netns, "lan0", "10.66.0", "fd66");
    let (one, other) = (node.pod("one").await, node.pod("other").await);
    for (v6, far) in [(false, "10.66.0.2"), (true, "fd66::2")] {
        assert_eq!(
            client_seen_by(&lan_host, far, &one.netns).as_deref(),
            Some(one.ip(v6)),
            "the LAN host must see the pod's address"
        );
        assert_eq!(
            client_seen_by(&one.netns, one.ip(v6), &lan_host).as_deref(),
            Some(far),
            "the pod must see the LAN host's address"
        );
        assert_eq!(
            client_seen_by(&other.netns, other.ip(v6), &one.netns).as_deref(),
            Some(one.ip(v6)),
            "pods must see each other's own addresses"
        );
    }
    node.berth.remove_pod(&one.id).await;
    node.berth.remove_pod(&other.id).await;
    drop(lan_host);
    node.clean().await;
}

/// A DHCP server on a host in the node's LAN.
struct DhcpServer {
    server: std::process::Child,
    leases: tempfile::NamedTempFile,
}

impl DhcpServer {
    fn on(lan_host: &Namespace) -> Self {
        let leases = tempfile::NamedTempFile::new().unwrap();
        let mut command = lan_host.command("dnsmasq");
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

    fn has_lease(&self, address: &str) -> bool {
        fs::read_to_string(self.leases.path()).unwrap().contains(&format!(" {address} "))
    }
}

impl Drop for DhcpServer {
    fn drop(&mut self) {
        drop(self.server.kill());
        drop(self.server.wait());
    }
}

/// Checks that a pod gets an address from the DHCP server, keeps it over a restart of the daemon, and releases it.
async fn pod_gets_a_dhcp_lease(plugin: Value, node_script: &str) {
    let mut node = Node::with(json!([plugin])).await;
    let lan_host = Namespace::beside(&node.netns, "lan0", "10.66.0", "fd66");
    node.netns.sh(node_script);
    let dhcp_server = DhcpServer::on(&lan_host);
    let pod = node.pod("lent").await;
    let address = pod.ip(false).to_owned();
    assert!(address.starts_with("10.66.0.1") && dhcp_server.has_lease(&address), "{address}");
    assert_eq!(client_seen_by(&lan_host, "10.66.0.2", &pod.netns).as_deref(), Some(&*address));
    node.berth.kill();
    node.berth.restart().await;
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: false };
    let status = node.berth.runtime.pod_sandbox_status(request).await.unwrap().into_inner().status.unwrap();
    assert_eq!(status.network.unwrap().ip, address);
    node.berth.remove_pod(&pod.id).await;
    let until = Instant::now() + Duration::from_secs(30);
    while dhcp_server.has_lease(&address) {
        assert!(Instant::now() < until, "{address} was not released");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(dhcp_server);
    drop(lan_host);
    node.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_macvlan_pod_gets_keeps_and_releases_a_dhcp_lease() {
    let plugin = json!({ "type": "macvlan", "master": "lan0", "ipam": { "type": "dhcp" } });
    pod_gets_a_dhcp_lease(plugin, "true").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridged_pod_gets_keeps_and_releases_a_dhcp_lease() {
    let plugin = json!({ "type": "bridge", "bridge": "lan", "ipam": { "type": "dhcp" } });
    pod_gets_a_dhcp_lease(
        plugin,
        "ip link add lan type bridge; ip link set lan up; ip link set lan0 master lan",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mtu_of_the_network_applies_to_pods() {
    let mut node = Node::with(json!([bridge(&json!({ "mtu": 1400 }))])).await;
    let (one, other) = (node.pod("one").await, node.pod("other").await);
    for pod in [&one, &other] {
        assert!(pod.netns.sh("ip -o link show eth0").contains("mtu 1400 "));
    }
    // TCP uses the MTU: the segment size is the MTU without the headers.
    let script = format!("ss -Htin 'dport = :{PORT}'");
    let options = ["--client", other.ip(false), "--time", "3"];
    let (traffic, sizes) = std::thread::scope(|scope| {
        let running = scope.spawn(|| traffic(&other.netns, PORT, &one.netns, &options));
        let mut sizes = String::new();
        while !running.is_finished() && !sizes.contains("advmss:") {
            sizes = one.netns.sh(&script);
            std::thread::sleep(Duration::from_millis(50));
        }
        (running.join().unwrap(), sizes)
    });
    assert!(traffic.is_some());
    assert!(sizes.contains("pmtu:1400") && sizes.contains("advmss:1348"), "{sizes}");
    node.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bandwidth_limits_hold() {
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
    // `--omit` excludes the initial burst that the limit allows.
    let options = ["--client", "198.51.100.2", "--omit", "2", "--time", "5"];
    for (way, more, limit) in [("to the pod", &["--reverse"][..], 20e6), ("from the pod", &[], 8e6)] {
        let rate = traffic(&outside, PORT, &limited.netns, &[&options[..], more].concat()).unwrap().rate;
        assert!((rate / limit - 1.0).abs() < 0.15, "{way}: {rate:.0} of {limit:.0} bits a second");
        let rate = traffic(&outside, PORT, &free.netns, &[&options[..], more].concat()).unwrap().rate;
        assert!(rate > 2.0 * limit, "{way}, without a limit: {rate:.0} bits a second");
    }
    drop(outside);
    node.clean().await;
    // `clean` has checked that the devices of the limits are removed with the pods.
}
