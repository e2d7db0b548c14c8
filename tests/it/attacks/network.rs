//! The network of pods: false router advertisements, services on the host's loopback, host ports that catch packets
//! for others, plugin types that are paths.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use berth_proto::v1::*;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::json;
use tonic::Code;

use crate::attacks::lab::{Lab, PROGRAMS, armed};
use crate::support::net::{Namespace, Netns};
use crate::support::{PATIENCE, code, shell, sleeper};

/// Answers every connection to an address of the host with a name. The thread runs until the tests exit.
fn serve(pid: u32, address: &str, name: &'static str) {
    let address = address.to_owned();
    let listener = std::thread::spawn(move || {
        let namespace = fs::File::open(format!("/proc/{pid}/ns/net")).unwrap();
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        TcpListener::bind(address).unwrap()
    })
    .join()
    .unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            drop(stream.write_all(name.as_bytes()));
        }
    });
}

/// A process that answers every connection with a name. Drop ends it. A thread would keep the pod's namespace open.
struct Server(Child);

impl Server {
    fn start(netns: &Netns, port: u16, name: &str) -> Self {
        let mut command = netns.command("busybox");
        command.args(["nc", "-ll", "-p", &port.to_string(), "-e", "/bin/echo", name]);
        let server = Self(command.stdin(Stdio::null()).spawn().unwrap());
        let until = Instant::now() + PATIENCE;
        while netns.sh(&format!("ss -Hltn 'sport = :{port}'")).is_empty() {
            assert!(Instant::now() < until, "nc does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Returns the name that answers at an address.
fn answers(client: &Netns, address: &str, port: u16) -> String {
    let script = format!("busybox nc -w 3 {address} {port} </dev/null || true");
    String::from_utf8_lossy(&client.try_sh(&script).stdout).trim().to_owned()
}

async fn netns_of(lab: &mut Lab, container: &str) -> Netns {
    Netns::of(u32::try_from(lab.info(container).await["pid"].as_u64().unwrap()).unwrap())
}

/// Also CVE-2020-13401 (docker) and CVE-2024-32473 (docker, networks without IPv6).
#[tokio::test(flavor = "multi_thread")]
async fn cve_2020_10749_router_advertisements_of_containers_are_ignored() {
    for ranges in [
        json!([[{ "subnet": "10.66.0.0/24" }], [{ "subnet": "fd66::/64" }]]),
        json!([[{ "subnet": "10.66.0.0/24" }]]),
    ] {
        let mut lab = Lab::start().await;
        let list = json!({ "cniVersion": "1.0.0", "name": "attacked", "plugins": [
            { "type": "bridge", "bridge": "attacked0", "isGateway": true, "ipMasq": true,
              "ipam": { "type": "host-local", "ranges": ranges, "routes": [{ "dst": "0.0.0.0/0" }] } } ] });
        fs::write(lab.path("net.d/10.conflist"), list.to_string()).unwrap();
        let (pod, other) = (lab.pod("pod").await, lab.pod("other").await);
        let victim = lab.run(&other, sleeper("victim")).await;
        let victim = netns_of(&mut lab, &victim).await;
        let host = Netns::of(lab.host_process());
        let inspect = |netns: &Netns| netns.sh("ip -6 route show table all; ip -6 addr");
        let before = [inspect(&victim), inspect(&host)];
        let program = format!("{PROGRAMS}/advertise eth0 12 2>&1; ip -6 addr show eth0 | grep -c inet6");
        let (_, output) = lab.run_to_end(&pod, armed(shell("router", &program))).await;
        assert!(output.contains("sent 12") || output.contains("sent 0\n0\n"), "{output}");
        for (netns, before) in [(&victim, &before[0]), (&host, &before[1])] {
            let now = inspect(netns);
            assert!(!now.contains("fd66:bad") && !now.contains("proto ra"), "{now}\nbefore:\n{before}");
        }
        lab.finish().await;
    }
}

/// Services on the host's loopback are reachable from the host only, also when host ports of pods listen on
/// 127.0.0.1.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2020_8558_other_hosts_cannot_reach_the_hosts_loopback() {
    let mut lab = Lab::start().await;
    let host = Netns::of(lab.host_process());
    let mut config = lab.pod_config("mapped");
    config.port_mappings =
        vec![PortMapping { container_port: 80, host_port: 18080, ..PortMapping::default() }];
    let pod = lab.run_pod(config).await;
    let container = lab.run(&pod, sleeper("c")).await;
    let pod = netns_of(&mut lab, &container).await;
    let outside = Namespace::beside(&host, "out0", "198.51.100", "fd99");
    serve(lab.host_process(), "127.0.0.1:17777", "loopback");
    assert_eq!(answers(&host, "127.0.0.1", 17777), "loopback");
    for (attacker, link, gateway) in [(&pod, "eth0", "10.77.0.1"), (&*outside, "far0", "198.51.100.1")] {
        // The attacker removes its own 127.0.0.0/8 and sends packets for 127.0.0.1 over the link.
        attacker.sh(&format!(
            "for key in all default {link}; do \
             for name in route_localnet:1 rp_filter:0 accept_local:1; do \
             busybox sysctl -w net.ipv4.conf.$key.${{name%:*}}=${{name#*:}} >/dev/null; done; done; \
             ip addr del 127.0.0.1/8 dev lo; ip route flush table local 127.0.0.0/8 2>/dev/null || true; \
             ip route add 127.0.0.0/8 via {gateway} dev {link}"
        ));
        assert_eq!(
            answers(attacker, "127.0.0.1", 17777),
            "",
            "a loopback service of the host answers on {link}"
        );
    }
    assert_eq!(answers(&host, "127.0.0.1", 17777), "loopback", "the host must still reach its service");
    drop(outside);
    lab.finish().await;
}

/// The type of a plugin is a name. A path is refused.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2021_20206_a_plugin_type_that_is_a_path_is_refused() {
    let mut lab = Lab::start().await;
    lab.folder("bin");
    let evil = lab.path("evil");
    fs::write(&evil, format!("#!/bin/sh\ntouch {}/made\n", lab.canary_text())).unwrap();
    fs::set_permissions(&evil, fs::Permissions::from_mode(0o755)).unwrap();
    let absolute = evil.display().to_string();
    for kind in ["../evil", "../../evil", "./../evil", absolute.as_str(), "x/../../evil", "..", ""] {
        for list in [
            json!({ "cniVersion": "1.0.0", "name": "x", "plugins": [{ "type": kind }] }),
            json!({ "cniVersion": "1.0.0", "name": "x", "plugins": [{ "type": "bridge", "bridge": "evil0", "ipam": { "type": kind } }] }),
            json!({ "cniVersion": "1.0.0", "name": kind, "plugins": [{ "type": kind }] }),
        ] {
            fs::write(lab.path("net.d/10.conflist"), list.to_string()).unwrap();
            let config = lab.pod_config("pod");
            match lab.try_run_pod(config).await {
                // A bridge without addresses is a valid network.
                Ok(pod) if kind.is_empty() => lab.remove_pod(&pod).await,
                result => assert_ne!(code(result), Code::Ok, "{list}"),
            }
            lab.assert_untouched();
        }
    }
    lab.finish().await;
}

/// Also CVE-2019-9946: a host port matches only packets to addresses of the host, and only after the rules of
/// services.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2025_67499_host_ports_catch_only_packets_to_the_host() {
    let mut lab = Lab::start().await;
    let host = Netns::of(lab.host_process());
    let outside = Namespace::beside(&host, "out0", "198.51.100", "fd99");
    let mut config = lab.pod_config("mapped");
    config.port_mappings =
        vec![PortMapping { container_port: 80, host_port: 18080, ..PortMapping::default() }];
    let mapped = lab.run_pod(config).await;
    let container = lab.run(&mapped, sleeper("c")).await;
    let server = Server::start(&netns_of(&mut lab, &container).await, 80, "pod");
    let other = lab.pod("other").await;
    let container = lab.run(&other, sleeper("c")).await;
    let other = netns_of(&mut lab, &container).await;
    let beside = Server::start(&outside, 18080, "outside");
    assert_eq!(
        answers(&outside, "198.51.100.1", 18080),
        "pod",
        "the host port must answer on an address of the host"
    );
    assert_eq!(
        answers(&other, "198.51.100.2", 18080),
        "outside",
        "packets routed through the host must not be caught"
    );
    assert_eq!(
        answers(&host, "198.51.100.2", 18080),
        "outside",
        "packets from the host to other addresses must not be caught"
    );
    // A service of kube-proxy on the same address and port takes precedence.
    host.sh(
        "nft 'table ip services { chain prerouting { type nat hook prerouting priority dstnat; \
         ip daddr 198.51.100.1 tcp dport 18080 dnat to 198.51.100.2:18080; }; \
         chain postrouting { type nat hook postrouting priority srcnat; ip daddr 198.51.100.2 masquerade; }; }'",
    );
    assert_eq!(answers(&other, "198.51.100.1", 18080), "outside", "the service must take precedence");
    host.sh("nft delete table ip services");
    drop((server, beside));
    drop(outside);
    lab.finish().await;
}
