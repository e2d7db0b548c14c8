//! The networks that are compared. Every key that the plugins' documentation describes is in one of them.

mod addresses;
mod bridges;
mod changes;
mod interfaces;

use serde_json::{Value, json};

use crate::cni_reference::{Case, Side, berth_plugins, check, reference};

fn v4() -> Value {
    json!({ "type": "host-local", "subnet": "10.1.0.0/24" })
}

fn v6() -> Value {
    json!({ "type": "host-local", "subnet": "fd01::/64" })
}

fn dual() -> Value {
    json!({ "type": "host-local",
        "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd01::/64" }]],
        "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }] })
}

/// Returns the plugin `bridge` with additional keys.
fn bridge(ipam: Value, keys: Value) -> Value {
    plugin(json!({ "type": "bridge", "bridge": "cni0", "ipam": ipam }), keys)
}

fn plugin(mut plugin: Value, keys: Value) -> Value {
    for (key, value) in keys.as_object().into_iter().flatten() {
        plugin[key] = value.clone();
    }
    plugin
}

/// Returns a network with one plugin.
fn one(plugin: Value) -> Case {
    Case { plugins: json!([plugin]), ..Case::default() }
}

/// Returns a network with a bridge and another plugin after it.
fn chained(then: Value) -> Case {
    Case { plugins: json!([bridge(dual(), json!({ "isGateway": true })), then]), ..Case::default() }
}

/// Creates a parent for links such as macvlan.
const PARENT: &str =
    "ip link add par0 address 02:00:00:00:00:01 type veth peer name far0 address 02:00:00:00:00:02
    ip addr add 10.1.0.254/24 dev far0
    ip link set far0 up; ip link set par0 up";
