//! The network under load, when an address is reused, and when other programs change what berth has created on the
//! host.

use std::fs;
use std::time::{Duration, Instant};

use crate::support::net::{Namespace, Netns};
use crate::support::node::{Node, Pod, bridge, ports};
use crate::support::{Berth, PATIENCE};
use berth_proto::v1::{
    PodSandboxConfig, PortMapping, RemovePodSandboxRequest, RunPodSandboxRequest, StatusRequest,
};
use serde_json::{Value, json};

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

fn port(host_port: i32) -> PortMapping {
    PortMapping { container_port: 80, host_port, ..PortMapping::default() }
}

fn with_ports(berth: &Berth, name: &str, ports: impl IntoIterator<Item = i32>) -> PodSandboxConfig {
    PodSandboxConfig { port_mappings: ports.into_iter().map(port).collect(), ..berth.pod_config(name) }
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

/// Creates a node with addresses for two pods only.
async fn node_with_two_addresses(keys: Value) -> Node {
    let mut plugin = bridge(&keys);
    plugin["ipam"]["ranges"] = json!([
        [{ "subnet": "10.66.0.0/24", "rangeStart": "10.66.0.20", "rangeEnd": "10.66.0.21" }],
        [{ "subnet": "fd66::/64", "rangeStart": "fd66::20", "rangeEnd": "fd66::21" }]
    ]);
    Node::with(json!([plugin])).await
}

/// Sends one packet and returns whether it is answered.
fn is_answered(from: &Netns, to: &str) -> bool {
    from.try_sh(&format!("busybox ping -c 1 -W 5 {to}")).status.success()
}

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

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < until, "{what}: the condition is not met in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn network_condition(berth: &mut Berth) -> (bool, String) {
    let status = berth.runtime.status(StatusRequest { verbose: false }).await.unwrap().into_inner();
    let conditions = status.status.unwrap().conditions;
    let network = conditions.into_iter().find(|condition| condition.r#type == "NetworkReady").unwrap();
    (network.status, network.message)
}

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
async fn firewall_rules_that_drop_pod_traffic_are_reported() {
    let mut node = Node::with(json!([bridge(&json!({})), ports()])).await;
    let outside = node.outside();
    let pod = node.pod("pod").await;
    let chain = "nft add table inet other; nft add chain inet other forward '{ type filter hook forward priority 0; policy drop; }'";
    let iptables = "iptables -P FORWARD DROP; iptables -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; \
                    iptables -A FORWARD -i docker0 -j ACCEPT";
    // iptables-legacy does not use nftables.
    let legacy = "iptables-legacy -P FORWARD DROP; iptables-legacy -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";
    // The rules that dockerd leaves.
    let docker = "iptables -P FORWARD DROP; iptables -N DOCKER; iptables -N DOCKER-USER; iptables -A DOCKER-USER -j RETURN; \
                  iptables -A FORWARD -j DOCKER-USER; iptables -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; \
                  iptables -A FORWARD -o docker0 -j DOCKER; iptables -A FORWARD -i docker0 ! -o docker0 -j ACCEPT; \
                  iptables -A FORWARD -i docker0 -o docker0 -j ACCEPT; \
                  iptables -A FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT";
    let reject = "nft add table inet other; nft add chain inet other forward '{ type filter hook forward priority 10; }'; \
                  nft add rule inet other forward ct state '{ established, related }' accept; \
                  nft add chain inet other zone; nft add rule inet other zone iifname docker0 accept; \
                  nft add rule inet other forward jump zone; nft add rule inet other forward counter reject with icmpx admin-prohibited";
    for (block, unblock) in [
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
        assert!(is_answered(&pod.netns, "198.51.100.2"));
        node.netns.sh(block);
        assert!(!is_answered(&pod.netns, "198.51.100.2"), "{block}");
        until(block, async || {
            let (ready, why) = network_condition(&mut node.berth).await;
            !ready
                && why.contains("drops forwarded packets from 10.66.0.0/24")
                && why.to_lowercase().contains("forward")
        })
        .await;
        node.netns.sh(unblock);
        assert!(is_answered(&pod.netns, "198.51.100.2"), "{unblock}");
        until(unblock, async || network_condition(&mut node.berth).await.0).await;
        node.netns.sh(
            "nft delete table inet other 2>/dev/null || true
             for tables in iptables iptables-legacy; do $tables -P FORWARD ACCEPT; $tables -F; $tables -X; done",
        );
    }
    drop(outside);
    node.clean().await;
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
    let server = Server::start(&pod.netns, "[::]", 80, "six");
    assert_eq!(server.answers(&outside, "fd99::1", 20000), "six");
    assert_eq!(server.answers(&node.netns, "fd99::1", 20000), "six");
    assert_eq!(server.answers(&pod.netns, "fd99::1", 20000), "six");
    drop((server, outside));
    node.clean().await;
}

/// A server that answers every connection with its name.
struct Server(std::process::Child);

impl Server {
    fn start(netns: &Netns, address: &str, port: u16, name: &str) -> Self {
        let script = "import socket,sys
host,port,name=sys.argv[1].strip('[]'),int(sys.argv[2]),sys.argv[3]
s=socket.create_server((host,port),family=socket.AF_INET6 if ':' in host else socket.AF_INET)
print('ready',flush=True)
while True:
    c,_=s.accept()
    c.sendall(name.encode())
    if name!='holds': c.close()
    else: sys.held=getattr(sys,'held',[])+[c]";
        let mut child = netns
            .command("python3")
            .args(["-c", script, address, &port.to_string(), name])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0_u8; 6];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
        Self(child)
    }

    /// Connects and returns what the server sends.
    fn answers(&self, from: &Netns, address: &str, port: u16) -> String {
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
    let servers =
        [Server::start(&all.netns, "0.0.0.0", 80, "all"), Server::start(&one.netns, "0.0.0.0", 80, "one")];
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

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_a_removed_pod_reaches_the_next_pod_with_its_host_port() {
    let mut node = Node::with(json!([bridge(&json!({})), ports()])).await;
    let outside = node.outside();
    let config = with_ports(&node.berth, "gone", [20000]);
    let gone = node.pod_of(config).await;
    // Otherwise the kernel keeps the pod's namespace while it tries to notify the client.
    gone.netns.sh("echo 1 > /proc/sys/net/ipv4/tcp_orphan_retries");
    let server = Server::start(&gone.netns, "0.0.0.0", 80, "holds");
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
    let server = Server::start(&next.netns, "0.0.0.0", 80, "next");
    let again = outside.command("python3").args(["-c", client, "once"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&again.stdout), "next\n", "{again:?}");
    drop((server, outside));
    node.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kube_proxy_services_and_host_ports_work_together() {
    let mut node = Node::with(json!([bridge(&json!({ "hairpinMode": true })), ports()])).await;
    let outside = node.outside();
    outside.sh("ip route add 10.96.0.0/24 via 198.51.100.1");
    // No link has the service addresses, so packets to them are routed to the default gateway.
    node.netns.sh("ip route add default via 198.51.100.2");
    let config = with_ports(&node.berth, "pod", [20000]);
    let (pod, other) = (node.pod_of(config).await, node.pod("other").await);
    let server = Server::start(&pod.netns, "0.0.0.0", 80, "pod");
    let ip = pod.ip(false);
    // The rules that kube-proxy creates for a service at 10.96.0.10:443 and the node port 30443, in each of its
    // modes.
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
        node.netns.sh(rules);
        for (who, client) in
            [("outside", &*outside), ("node", &node.netns), ("other", &other.netns), ("itself", &pod.netns)]
        {
            for (address, port) in [("10.96.0.10", 443), ("198.51.100.1", 30443), ("198.51.100.1", 20000)] {
                let answer = server.answers(client, address, port);
                assert_eq!(answer, "pod", "{mode}: {address}:{port} from {who}");
            }
        }
        assert!(network_condition(&mut node.berth).await.0, "{mode}");
        node.netns.sh(away);
    }
    drop((server, outside));
    node.clean().await;
}
