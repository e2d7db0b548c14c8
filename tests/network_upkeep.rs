//! What a user can rely on of the network when much happens at once, when an address comes back, and when somebody touches
//! what berth has made on the host.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test stops at the first surprise")]

#[path = "support/net.rs"]
mod net;
#[path = "support/node.rs"]
mod node;
mod support;

use std::fs;
use std::time::{Duration, Instant};

use berth_proto::v1::{
    PodSandboxConfig, PortMapping, RemovePodSandboxRequest, RunPodSandboxRequest, StatusRequest,
};
use net::{Namespace, Place};
use node::{Node, Pod, bridge, ports};
use serde_json::{Value, json};
use support::{Berth, PATIENCE};

/// Runs pods, so many at a time; the errors.
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

fn port(host_port: i32) -> PortMapping {
    PortMapping { container_port: 80, host_port, ..PortMapping::default() }
}

fn with_ports(berth: &Berth, name: &str, ports: impl IntoIterator<Item = i32>) -> PodSandboxConfig {
    PodSandboxConfig { port_mappings: ports.into_iter().map(port).collect(), ..berth.pod_config(name) }
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_with_ports_of_the_host_start_together() {
    let node = Node::with(json!([bridge(&json!({})), ports()])).await;
    let configs =
        (0..48).map(|number| with_ports(&node.berth, &format!("pod{number}"), [20000 + number])).collect();
    assert_eq!(run_together(&node.berth, configs, 8).await, Vec::<String>::new());
    let rules = node.place.sh("nft list map inet berth ports4");
    for number in 0..48 {
        assert!(rules.contains(&format!("tcp . {}", 20000 + number)), "{rules}");
    }
    node.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_on_the_link_of_the_default_route_start_together() {
    let ipam = json!({ "type": "host-local", "ranges": [[{ "subnet": "10.66.0.0/24", "rangeStart": "10.66.0.20" }]] });
    let limits = json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } });
    let node = Node::with(json!([{ "type": "macvlan", "mode": "bridge", "ipam": ipam }, limits])).await;
    let neighbour = Namespace::beside(&node.place, "lan0", "10.66.0", "fd66");
    node.place.sh("ip route add default via 10.66.0.2");
    let configs = (0..32).map(|number| node.berth.pod_config(&format!("pod{number}"))).collect();
    assert_eq!(run_together(&node.berth, configs, 8).await, Vec::<String>::new());
    drop(neighbour);
    node.clean().await;
}

/// A node whose first two pods have the only addresses that there are.
async fn node_with_two_addresses(keys: Value) -> Node {
    let mut plugin = bridge(&keys);
    plugin["ipam"]["ranges"] = json!([
        [{ "subnet": "10.66.0.0/24", "rangeStart": "10.66.0.20", "rangeEnd": "10.66.0.21" }],
        [{ "subnet": "fd66::/64", "rangeStart": "fd66::20", "rangeEnd": "fd66::21" }]
    ]);
    Node::with(json!([plugin])).await
}

/// Whether the first packet is answered: nobody sends a second one.
fn is_answered(from: &Place, to: &str) -> bool {
    from.try_sh(&format!("busybox ping -c 1 -W 5 {to}")).status.success()
}

/// Everybody on the bridge knows where a pod is, and will not ask again.
fn know(place: &Place, link: &str, pod: &Pod) {
    let mac = pod.place.sh("cat /sys/class/net/eth0/address");
    for ip in &pod.ips {
        place.sh(&format!("ip neigh replace {ip} lladdr {mac} nud reachable dev {link}"));
    }
}

async fn an_address_comes_back(keys: Value, link: &str, mac: Option<&str>) {
    let mut node = node_with_two_addresses(keys).await;
    let first = node.pod("first").await;
    let other = node.pod("other").await;
    let mut before = first;
    for round in 0..3 {
        for (from, by) in [(&node.place, link), (&other.place, "eth0")] {
            for ip in &before.ips {
                assert!(is_answered(from, ip), "round {round}: {ip} from {by}");
            }
            know(from, by, &before);
        }
        let ips = before.ips.clone();
        node.berth.remove_pod(&before.id).await;
        let mut config = node.berth.pod_config(&format!("again{round}"));
        config.annotations.extend(mac.map(|mac| ("berth.io/mac".to_owned(), mac.to_owned())));
        let again = node.pod_of(config).await;
        assert_eq!(again.ips, ips, "there is no other address");
        for (from, by) in [(&node.place, link), (&other.place, "eth0")] {
            for ip in &again.ips {
                assert!(is_answered(from, ip), "round {round}: {ip} came back, from {by}");
            }
        }
        before = again;
    }
    node.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_comes_back_is_reached_at_once() {
    an_address_comes_back(json!({}), "paths0", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_comes_back_behind_a_guard_is_reached_at_once() {
    an_address_comes_back(json!({ "macspoofchk": true, "hairpinMode": true }), "paths0", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_comes_back_with_its_hardware_address_is_reached_at_once() {
    let keys = json!({ "capabilities": { "mac": true } });
    an_address_comes_back(keys, "paths0", Some("02:00:00:00:66:01")).await;
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < until, "{what}: it does not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn network_condition(berth: &mut Berth) -> (bool, String) {
    let status = berth.runtime.status(StatusRequest { verbose: false }).await.unwrap().into_inner();
    let conditions = status.status.unwrap().conditions;
    let network = conditions.into_iter().find(|condition| condition.r#type == "NetworkReady").unwrap();
    (network.status, network.message)
}

/// What somebody does to the host, and what is there again afterwards.
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
async fn a_bridge_that_somebody_changes_is_put_right() {
    let mut node = Node::with(json!([bridge(&json!({})), ports()])).await;
    let outside = node.outside();
    let pod = node.pod("stays").await;
    let everybody = ["198.51.100.2", "fd99::2", "10.66.0.1", "fd66::1"];
    let reaches = |pod: &Pod| everybody.iter().all(|to| is_answered(&pod.place, to));
    // What was sent before it was put right may be lost.
    let ping = everybody.map(|to| format!("busybox ping -c 1 -W 1 {to}")).join(" && ");
    let reaches_again = |pod: &Pod| pod.place.try_sh(&ping).status.success();
    assert!(reaches(&pod));
    for (number, (change, mended)) in CHANGES.into_iter().enumerate() {
        node.place.sh(change);
        // A pod that comes at once has a network, and so does one that was there.
        let next = node.pod(&format!("next{number}")).await;
        assert!(node.place.try_sh(mended).status.success(), "{change}");
        assert!(reaches(&next), "{change}");
        until(change, async || reaches_again(&pod)).await;
        // Without a pod that comes, too.
        node.place.sh(change);
        until(change, async || node.place.try_sh(mended).status.success() && reaches_again(&pod)).await;
        assert!(network_condition(&mut node.berth).await.0, "{change}");
        node.berth.remove_pod(&next.id).await;
    }
    // And what was changed while no daemon ran.
    for (change, mended) in CHANGES {
        node.berth.kill();
        node.place.sh(change);
        node.berth.restart().await;
        until(change, async || node.place.try_sh(mended).status.success() && reaches_again(&pod)).await;
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
        node.place.sh(&format!("ip link set {port} {change}"));
        until(change, async || {
            node.place.try_sh(&connected).status.success() && pod.place.try_sh(ping).status.success()
        })
        .await;
        assert!(is_answered(&other.place, "10.66.0.1"), "{change}");
        node.place.sh(&format!("bridge -d link show dev {port} | grep -q 'hairpin on'"));
    }
    node.berth.remove_pod(&pod.id).await;
    node.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_put_right_is_told() {
    let mut node = Node::with(json!([bridge(&json!({}))])).await;
    let pod = node.pod("stays").await;
    // Somebody's own address in the way: that is not berth's to take.
    node.place.sh("echo 1 > /proc/sys/net/ipv4/conf/paths0/promote_secondaries
         ip addr add 10.66.0.9/24 dev paths0; ip addr del 10.66.0.1/24 dev paths0");
    until("it is told", async || {
        let (ready, why) = network_condition(&mut node.berth).await;
        !ready && why.contains("paths0") && why.contains("10.66.0.9/24")
    })
    .await;
    let refused = node.berth.try_run_pod(node.berth.pod_config("refused")).await.unwrap_err();
    assert!(refused.message().contains("10.66.0.9/24"), "{refused}");
    node.place.sh("ip addr del 10.66.0.9/24 dev paths0");
    until("it is over", async || network_condition(&mut node.berth).await.0).await;
    assert!(is_answered(&node.place, pod.ip(false)));
    node.clean().await;
}

/// The rules of pods.
fn rules(place: &Place) -> String {
    place.sh("for family in inet bridge; do nft list table $family berth || true; done")
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_that_somebody_deletes_are_put_back() {
    let mut node = Node::with(json!([bridge(&json!({ "macspoofchk": true })), ports()])).await;
    let config = with_ports(&node.berth, "server", [20000, 20001]);
    let server = node.pod_of(config).await;
    let before = rules(&node.place);
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
        node.place.sh(&change);
        until(&change, async || rules(&node.place) == before).await;
    }
    // Rules that others add beside, and that go again, are nobody's loss.
    node.place.sh("nft add table inet other; nft add chain inet other c; nft delete table inet other");
    for change in ["nft flush table inet berth", "nft delete element inet berth ports4 '{ tcp . 20001 }'"] {
        node.berth.kill();
        node.place.sh(change);
        node.berth.restart().await;
        until(change, async || rules(&node.place) == before).await;
    }
    node.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_may_have_very_many_ports_of_the_host() {
    let mut node = Node::with(json!([bridge(&json!({})), ports()])).await;
    for count in [270, 3000] {
        let config = with_ports(&node.berth, &format!("many{count}"), 20000..20000 + count);
        let pod = node.pod_of(config).await;
        let mapped = || node.place.sh("nft list table inet berth").matches("tcp . 2").count();
        assert_eq!(mapped(), usize::try_from(count).unwrap() * 2, "for both families");
        // Whoever wants one of them is told who has it, and has none of the others.
        let taken = with_ports(&node.berth, "taken", (19000..19300).chain([20000 + count - 1]));
        let refused = node.berth.try_run_pod(taken).await.unwrap_err();
        assert!(refused.message().contains(&pod.id), "{refused}");
        assert!(!node.place.sh("nft list table inet berth").contains("tcp . 19"));
        node.berth.remove_pod(&pod.id).await;
        assert_eq!(node.place.sh("nft list table inet berth").matches("tcp . 2").count(), 0);
    }
    node.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn very_many_leftovers_are_freed_at_the_start() {
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
    node.place.sh(&format!("nft -f {}", file.display()));
    node.berth.restart().await;
    until("they are freed", async || {
        let rules = node.place.sh("nft list map inet berth ports4");
        !rules.contains("udp") && rules.contains("tcp . 20000")
    })
    .await;
    assert!(is_answered(&node.place, lives.ip(false)));
    node.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_name_of_the_built_in_bridge_leaves_nothing_of_the_old_one() {
    let mut berth = Berth::start().await;
    let place = Place::of(berth.host_process());
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
    let rules = place.sh("nft list ruleset");
    assert!(!rules.contains("10.77.0.") || !rules.contains("elements = { 10.77"), "{rules}");
    assert!(!rules.contains(&old), "{rules}");
    let left: Vec<_> = fs::read_dir(berth.path("addresses/testbr0")).unwrap().flatten().collect();
    assert!(left.iter().all(|entry| !entry.file_name().to_string_lossy().starts_with("10.77")), "{left:?}");
    assert!(!place.sh("ip -o link").contains("testbr0"), "its last pod has gone");
    berth.remove_pod(&next).await;
    let mut request = RemovePodSandboxRequest::default();
    request.pod_sandbox_id.clone_from(&new);
    berth.runtime.remove_pod_sandbox(request).await.unwrap();
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_of_others_that_drop_what_pods_send_are_told() {
    let mut node = Node::with(json!([bridge(&json!({})), ports()])).await;
    let outside = node.outside();
    let pod = node.pod("pod").await;
    let chain = "nft add table inet other; nft add chain inet other forward '{ type filter hook forward priority 0; policy drop; }'";
    let iptables = "iptables -P FORWARD DROP; iptables -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; \
                    iptables -A FORWARD -i docker0 -j ACCEPT";
    // An iptables that does not use nftables.
    let legacy = "iptables-legacy -P FORWARD DROP; iptables-legacy -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";
    // As dockerd leaves it.
    let docker = "iptables -P FORWARD DROP; iptables -N DOCKER; iptables -N DOCKER-USER; iptables -A DOCKER-USER -j RETURN; \
                  iptables -A FORWARD -j DOCKER-USER; iptables -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; \
                  iptables -A FORWARD -o docker0 -j DOCKER; iptables -A FORWARD -i docker0 ! -o docker0 -j ACCEPT; \
                  iptables -A FORWARD -i docker0 -o docker0 -j ACCEPT; \
                  iptables -A FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT";
    let reject = "nft add table inet other; nft add chain inet other forward '{ type filter hook forward priority 10; }'; \
                  nft add rule inet other forward ct state '{ established, related }' accept; \
                  nft add chain inet other zone; nft add rule inet other zone iifname docker0 accept; \
                  nft add rule inet other forward jump zone; nft add rule inet other forward counter reject with icmpx admin-prohibited";
    for (close, opened) in [
        (
            chain,
            "nft add rule inet other forward iifname paths0 accept; nft add rule inet other forward oifname paths0 accept",
        ),
        (
            chain,
            "nft add rule inet other forward ip saddr 10.66.0.0/16 accept; nft add rule inet other forward ct state established accept; \
                 nft add rule inet other forward ip6 saddr fd66::/64 accept",
        ),
        (iptables, "iptables -I FORWARD -i paths0 -j ACCEPT"),
        (legacy, "iptables-legacy -I FORWARD -i paths0 -j ACCEPT"),
        (docker, "iptables -I DOCKER-USER -i paths0 -j ACCEPT; iptables -I DOCKER-USER -o paths0 -j ACCEPT"),
        (reject, "nft add rule inet other zone iifname 'paths*' accept"),
    ] {
        assert!(is_answered(&pod.place, "198.51.100.2"));
        node.place.sh(close);
        assert!(!is_answered(&pod.place, "198.51.100.2"), "{close}");
        until(close, async || {
            let (ready, why) = network_condition(&mut node.berth).await;
            !ready
                && why.contains("drops forwarded packets from 10.66.0.0/24")
                && why.to_lowercase().contains("forward")
        })
        .await;
        node.place.sh(opened);
        assert!(is_answered(&pod.place, "198.51.100.2"), "{opened}");
        until(opened, async || network_condition(&mut node.berth).await.0).await;
        node.place.sh(
            "nft delete table inet other 2>/dev/null || true
             for tables in iptables iptables-legacy; do $tables -P FORWARD ACCEPT; $tables -F; $tables -X; done",
        );
    }
    drop(outside);
    node.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_may_have_ipv6_alone() {
    let mut plugin = bridge(&json!({ "hairpinMode": true }));
    plugin["ipam"] = json!({ "type": "host-local", "ranges": [[{ "subnet": "fd66::/64" }]], "routes": [{ "dst": "::/0" }] });
    let mut node = Node::with(json!([plugin, ports()])).await;
    let outside = node.outside();
    let config = with_ports(&node.berth, "six", [20000]);
    let pod = node.pod_of(config).await;
    assert_eq!(pod.ips, ["fd66::2"]);
    assert!(is_answered(&pod.place, "fd99::2") && is_answered(&node.place, "fd66::2"));
    let server = Server::start(&pod.place, "[::]", 80, "six");
    assert_eq!(server.answers(&outside, "fd99::1", 20000), "six");
    assert_eq!(server.answers(&node.place, "fd99::1", 20000), "six");
    assert_eq!(server.answers(&pod.place, "fd99::1", 20000), "six");
    drop((server, outside));
    node.clean().await;
}

/// A server that answers every connection with its name.
struct Server(std::process::Child);

impl Server {
    fn start(place: &Place, address: &str, port: u16, name: &str) -> Self {
        let script = "import socket,sys
host,port,name=sys.argv[1].strip('[]'),int(sys.argv[2]),sys.argv[3]
s=socket.create_server((host,port),family=socket.AF_INET6 if ':' in host else socket.AF_INET)
print('ready',flush=True)
while True:
    c,_=s.accept()
    c.sendall(name.encode())
    if name!='holds': c.close()
    else: sys.held=getattr(sys,'held',[])+[c]";
        let mut child = place
            .command("python3")
            .args(["-c", script, address, &port.to_string(), name])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0_u8; 6];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
        Self(child)
    }

    /// What is heard by who connects.
    fn answers(&self, from: &Place, address: &str, port: u16) -> String {
        let answer = from.try_sh(&format!("busybox nc -w 5 {address} {port} </dev/null"));
        String::from_utf8_lossy(&answer.stdout).into_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn at(host_ip: &str, host_port: i32) -> PortMapping {
    PortMapping { host_ip: host_ip.to_owned(), ..port(host_port) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_of_one_address_goes_before_that_of_all() {
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
    let servers =
        [Server::start(&all.place, "0.0.0.0", 80, "all"), Server::start(&one.place, "0.0.0.0", 80, "one")];
    assert_eq!(servers[0].answers(&outside, "198.51.100.1", 20000), "one");
    assert_eq!(servers[0].answers(&node.place, "127.0.0.1", 20000), "all");
    for config in refused {
        let name = config.metadata.clone().unwrap().name;
        let error = node.berth.try_run_pod(config).await.unwrap_err();
        let whose = [&all.id, &one.id].iter().any(|id| error.message().contains(id.as_str()));
        assert!(whose || (name == "twice" && error.message().contains("20001")), "{name}: {error}");
    }
    node.berth.remove_pod(&one.id).await;
    assert_eq!(servers[0].answers(&outside, "198.51.100.1", 20000), "all");
    drop((servers, outside));
    node.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_a_pod_that_is_gone_meets_the_next() {
    let mut node = Node::with(json!([bridge(&json!({})), ports()])).await;
    let outside = node.outside();
    let config = with_ports(&node.berth, "gone", [20000]);
    let gone = node.pod_of(config).await;
    // Else the kernel keeps the pod's namespace for as long as it tries to tell the client of the end.
    gone.place.sh("echo 1 > /proc/sys/net/ipv4/tcp_orphan_retries");
    let server = Server::start(&gone.place, "0.0.0.0", 80, "holds");
    // A connection that is open when the pod goes, from a port that its client uses again.
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
    let mut heard = [0_u8; 6];
    std::io::Read::read_exact(first.stdout.as_mut().unwrap(), &mut heard).unwrap();
    assert_eq!(&heard, b"holds\n");
    // Nobody hears of its end: the client is cut off, and only then the pod goes.
    outside.sh("ip link set far0 down");
    drop(first.kill());
    drop(first.wait());
    drop(server);
    node.berth.remove_pod(&gone.id).await;
    outside.sh("ip link set far0 up; ip addr add fd99::2/64 dev far0 nodad 2>/dev/null || true");
    let config = with_ports(&node.berth, "next", [20000]);
    let next = node.pod_of(config).await;
    let server = Server::start(&next.place, "0.0.0.0", 80, "next");
    let again = outside.command("python3").args(["-c", client, "once"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&again.stdout), "next\n", "{again:?}");
    drop((server, outside));
    node.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn services_of_kube_proxy_and_ports_of_the_host_are_beside_each_other() {
    let mut node = Node::with(json!([bridge(&json!({ "hairpinMode": true })), ports()])).await;
    let outside = node.outside();
    outside.sh("ip route add 10.96.0.0/24 via 198.51.100.1");
    // Addresses of services are on no link: packets to them set out for the default gateway.
    node.place.sh("ip route add default via 198.51.100.2");
    let config = with_ports(&node.berth, "pod", [20000]);
    let (pod, other) = (node.pod_of(config).await, node.pod("other").await);
    let server = Server::start(&pod.place, "0.0.0.0", 80, "pod");
    let ip = pod.ip(false);
    // The rules that kube-proxy makes for a service at 10.96.0.10:443 and a node port 30443, in each of its modes.
    let nftables = format!(
        "nft add table ip kube-proxy
         for hook in prerouting output; do
           nft add chain ip kube-proxy nat-$hook \"{{ type nat hook $hook priority -100; }}\"
           nft add rule ip kube-proxy nat-$hook ip daddr 10.96.0.10 tcp dport 443 meta mark set 0x4000 dnat to {ip}:80
           nft add rule ip kube-proxy nat-$hook fib daddr type local tcp dport 30443 meta mark set 0x4000 dnat to {ip}:80
         done
         nft add chain ip kube-proxy nat-postrouting '{{ type nat hook postrouting priority 100; }}'
         nft add rule ip kube-proxy nat-postrouting meta mark and 0x4000 != 0 masquerade fully-random"
    );
    let iptables = format!(
        "iptables -t nat -N KUBE-SERVICES; iptables -t nat -N KUBE-MARK-MASQ; iptables -t nat -N KUBE-SEP
         iptables -t nat -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
         iptables -t nat -A KUBE-SEP -j KUBE-MARK-MASQ
         iptables -t nat -A KUBE-SEP -p tcp -j DNAT --to-destination {ip}:80
         iptables -t nat -A KUBE-SERVICES -d 10.96.0.10/32 -p tcp --dport 443 -j KUBE-SEP
         iptables -t nat -A KUBE-SERVICES -m addrtype --dst-type LOCAL -p tcp --dport 30443 -j KUBE-SEP
         iptables -t nat -A PREROUTING -j KUBE-SERVICES; iptables -t nat -A OUTPUT -j KUBE-SERVICES
         iptables -t nat -A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE --random-fully
         iptables -N KUBE-FORWARD; iptables -A FORWARD -j KUBE-FORWARD
         iptables -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
         iptables -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT"
    );
    for (mode, rules, away) in [
        ("nftables", &nftables, "nft delete table ip kube-proxy"),
        ("iptables", &iptables, "iptables -F; iptables -X; iptables -t nat -F; iptables -t nat -X"),
        ("iptables-legacy", &iptables.replace("iptables ", "iptables-legacy "), "true"),
    ] {
        node.place.sh(rules);
        for (who, client) in
            [("outside", &*outside), ("node", &node.place), ("other", &other.place), ("itself", &pod.place)]
        {
            for (address, port) in [("10.96.0.10", 443), ("198.51.100.1", 30443), ("198.51.100.1", 20000)] {
                let answer = server.answers(client, address, port);
                assert_eq!(answer, "pod", "{mode}: {address}:{port} from {who}");
            }
        }
        assert!(network_condition(&mut node.berth).await.0, "{mode}");
        node.place.sh(away);
    }
    drop((server, outside));
    node.clean().await;
}
