//! The network under load, when an address is reused, and when other programs change what berth has created on the
//! host.
//!
//! * [`parallel`]: many pods start together; [`reuse`]: a pod gets the address or the host port of a removed one
//! * [`repair`]: other programs change what berth has created; [`foreign`]: rules of other programs
//! * [`host_ports`]: many host ports, and host ports of one address; [`families`]: one IP version, another bridge

mod families;
mod foreign;
mod host_ports;
mod parallel;
mod repair;
mod reuse;

use std::time::{Duration, Instant};

use crate::support::net::Netns;
use crate::support::node::{Node, bridge};
use crate::support::{Berth, PATIENCE};
use berth_proto::v1::{PodSandboxConfig, PortMapping, StatusRequest};
use serde_json::{Value, json};

fn port(host_port: i32) -> PortMapping {
    PortMapping { container_port: 80, host_port, ..PortMapping::default() }
}

fn with_ports(berth: &Berth, name: &str, ports: impl IntoIterator<Item = i32>) -> PodSandboxConfig {
    PodSandboxConfig { port_mappings: ports.into_iter().map(port).collect(), ..berth.pod_config(name) }
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

/// A server that answers every connection with its name.
struct NamedServer(std::process::Child);

impl NamedServer {
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

impl Drop for NamedServer {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
