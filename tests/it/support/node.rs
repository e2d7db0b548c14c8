//! A node with a separate network, and its pods as seen from the host.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    missing_debug_implementations,
    clippy::unwrap_used,
    clippy::panic,
    reason = "each test uses a part"
)]

use std::fs;

use berth_proto::v1::{PodSandboxConfig, PodSandboxStatusRequest};
use serde_json::{Value, json};

use crate::support::Berth;
use crate::support::net::{Namespace, Netns};

/// A node with a network that a conflist configures.
pub struct Node {
    pub berth: Berth,
    pub netns: Netns,
}

impl Node {
    pub async fn with(plugins: Value) -> Self {
        let berth = Berth::start().await;
        let list = json!({ "cniVersion": "1.0.0", "name": "paths", "plugins": plugins });
        fs::write(berth.path("net.d/10-paths.conflist"), list.to_string()).unwrap();
        let netns = Netns::of(berth.host_process());
        Self { berth, netns }
    }

    /// Creates a host that has a route to the node only.
    pub fn outside(&self) -> Namespace {
        Namespace::beside(&self.netns, "out0", "198.51.100", "fd99")
    }

    pub async fn pod(&mut self, name: &str) -> Pod {
        let config = self.berth.pod_config(name);
        self.pod_of(config).await
    }

    pub async fn pod_of(&mut self, config: PodSandboxConfig) -> Pod {
        let id = self.berth.run_pod(config).await;
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: true };
        let answer = self.berth.runtime.pod_sandbox_status(request).await.unwrap().into_inner();
        let info: Value = serde_json::from_str(&answer.info["info"]).unwrap();
        let network = answer.status.unwrap().network.unwrap();
        let ips =
            [network.ip].into_iter().chain(network.additional_ips.into_iter().map(|ip| ip.ip)).collect();
        let netns = Netns::of(info["pid"].as_u64().unwrap().try_into().unwrap());
        Pod { id, ips, netns }
    }

    pub async fn clean(mut self) {
        assert_eq!(self.berth.clean().await, Vec::<String>::new());
        let rules = self.netns.sh("nft list ruleset");
        // The chains belong to the network, as the bridge does. Pods are elements.
        assert!(!rules.contains("elements"), "rules of pods are left: {rules}");
    }
}

/// A pod as seen from the host.
pub struct Pod {
    pub id: String,
    pub ips: Vec<String>,
    pub netns: Netns,
}

impl Pod {
    pub fn ip(&self, v6: bool) -> &str {
        self.ips.iter().find(|ip| ip.contains(':') == v6).unwrap()
    }
}

/// Returns the plugin `bridge` of the node's network with additional keys.
pub fn bridge(keys: &Value) -> Value {
    let mut bridge = json!({ "type": "bridge", "bridge": "paths0", "isGateway": true, "ipMasq": true,
        "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.66.0.0/24" }], [{ "subnet": "fd66::/64" }]],
                  "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }] } });
    for (key, value) in keys.as_object().unwrap() {
        bridge[key] = value.clone();
    }
    bridge
}

/// Returns the plugin `portmap`.
pub fn ports() -> Value {
    json!({ "type": "portmap", "capabilities": { "portMappings": true }, "snat": true })
}
