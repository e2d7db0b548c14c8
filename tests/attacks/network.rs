//! The network of pods: routers that are none, services of the host's loopback, ports that catch others' packets, plugins that
//! are paths.

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

use crate::lab::{Lab, PROGRAMS, armed};
use crate::net::{Namespace, Place};
use crate::support::{PATIENCE, code, shell, sleeper};

/// Answers every connection to an address of the host with a name; its thread ends with the tests.
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

/// The same at all addresses, by a process, which ends with this value: a thread would keep a pod's namespace.
struct Server(Child);

impl Server {
    fn start(place: &Place, port: u16, name: &str) -> Self {
        let mut command = place.command("busybox");
        command.args(["nc", "-ll", "-p", &port.to_string(), "-e", "/bin/echo", name]);
        let server = Self(command.stdin(Stdio::null()).spawn().unwrap());
        let until = Instant::now() + PATIENCE;
        while place.sh(&format!("ss -Hltn 'sport = :{port}'")).is_empty() {
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

/// Who answers at an address.
fn answers(client: &Place, address: &str, port: u16) -> String {
    let script = format!("busybox nc -w 3 {address} {port} </dev/null || true");
    String::from_utf8_lossy(&client.try_sh(&script).stdout).trim().to_owned()
}

async fn place_of(lab: &mut Lab, container: &str) -> Place {
    Place::of(u32::try_from(lab.info(container).await["pid"].as_u64().unwrap()).unwrap())
}

/// Also CVE-2020-13401 (docker) and CVE-2024-32473 (docker, networks without IPv6).
#[tokio::test(flavor = "multi_thread")]
async fn cve_2020_10749_a_container_is_a_router() {
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
        let victim = place_of(&mut lab, &victim).await;
        let host = Place::of(lab.host_process());
        let look = |place: &Place| place.sh("ip -6 route show table all; ip -6 addr");
        let before = [look(&victim), look(&host)];
        let program = format!("{PROGRAMS}/advertise eth0 12 2>&1; ip -6 addr show eth0 | grep -c inet6");
        let (_, said) = lab.run_to_end(&pod, armed(shell("router", &program))).await;
        assert!(said.contains("sent 12") || said.contains("sent 0\n0\n"), "{said}");
        for (place, before) in [(&victim, &before[0]), (&host, &before[1])] {
            let now = look(place);
            assert!(!now.contains("fd66:bad") && !now.contains("proto ra"), "{now}\nbefore:\n{before}");
        }
        lab.finish().await;
    }
}

/// What listens on the loopback of the host is for the host, also where ports of the host lead to pods on 127.0.0.1.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2020_8558_a_neighbour_reaches_the_hosts_loopback() {
    let mut lab = Lab::start().await;
    let host = Place::of(lab.host_process());
    let mut config = lab.pod_config("mapped");
    config.port_mappings =
        vec![PortMapping { container_port: 80, host_port: 18080, ..PortMapping::default() }];
    let pod = lab.run_pod(config).await;
    let container = lab.run(&pod, sleeper("c")).await;
    let pod = place_of(&mut lab, &container).await;
    let outside = Namespace::beside(&host, "out0", "198.51.100", "fd99");
    serve(lab.host_process(), "127.0.0.1:17777", "loopback");
    assert_eq!(answers(&host, "127.0.0.1", 17777), "loopback");
    for (attacker, link, gateway) in [(&pod, "eth0", "10.77.0.1"), (&*outside, "far0", "198.51.100.1")] {
        // The attacker takes 127.0.0.1 for somebody else's, and sends to it over the link.
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
            "a service of the host's loopback answers on {link}"
        );
    }
    assert_eq!(answers(&host, "127.0.0.1", 17777), "loopback", "the host still reaches it");
    drop(outside);
    lab.finish().await;
}

/// A type of a plugin is a name, not a path.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2021_20206_a_plugin_is_a_path() {
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
                // A bridge without addresses is a network, too.
                Ok(pod) if kind.is_empty() => lab.remove_pod(&pod).await,
                result => assert_ne!(code(result), Code::Ok, "{list}"),
            }
            lab.untouched();
        }
    }
    lab.finish().await;
}

/// Also CVE-2019-9946: a port of the host catches what is for an address of the host, and that only after services.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2025_67499_a_port_of_the_host_catches_others_packets() {
    let mut lab = Lab::start().await;
    let host = Place::of(lab.host_process());
    let outside = Namespace::beside(&host, "out0", "198.51.100", "fd99");
    let mut config = lab.pod_config("mapped");
    config.port_mappings =
        vec![PortMapping { container_port: 80, host_port: 18080, ..PortMapping::default() }];
    let mapped = lab.run_pod(config).await;
    let container = lab.run(&mapped, sleeper("c")).await;
    let server = Server::start(&place_of(&mut lab, &container).await, 80, "pod");
    let other = lab.pod("other").await;
    let container = lab.run(&other, sleeper("c")).await;
    let other = place_of(&mut lab, &container).await;
    let beside = Server::start(&outside, 18080, "outside");
    assert_eq!(answers(&outside, "198.51.100.1", 18080), "pod", "an address of the host");
    assert_eq!(answers(&other, "198.51.100.2", 18080), "outside", "another's address, by way of the host");
    assert_eq!(answers(&host, "198.51.100.2", 18080), "outside", "another's address, from the host");
    // A service that kube-proxy has on the same port of an address of the host comes first.
    host.sh(
        "nft 'table ip services { chain prerouting { type nat hook prerouting priority dstnat; \
         ip daddr 198.51.100.1 tcp dport 18080 dnat to 198.51.100.2:18080; }; \
         chain postrouting { type nat hook postrouting priority srcnat; ip daddr 198.51.100.2 masquerade; }; }'",
    );
    assert_eq!(answers(&other, "198.51.100.1", 18080), "outside", "the service");
    host.sh("nft delete table ip services");
    drop((server, beside));
    drop(outside);
    lab.finish().await;
}
