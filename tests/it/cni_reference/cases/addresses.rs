//! Networks with the address plugins `host-local`, `static` and `dhcp`.

use super::*;

#[test]
fn ranges_and_routes() {
    let ipam = json!({ "type": "host-local",
        "ranges": [[{ "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.50", "rangeEnd": "10.1.0.60", "gateway": "10.1.0.254" }]],
        "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "192.0.2.0/24", "gw": "10.1.0.99" }] });
    check(&one(bridge(ipam, json!({ "isGateway": true }))));
}

#[test]
fn address_from_the_runtime() {
    let case = one(bridge(v4(), json!({ "capabilities": { "ips": true } })));
    check(&Case { capabilities: json!({ "ips": ["10.1.0.77"] }), ..case });
}

#[test]
fn ranges_from_the_runtime() {
    let case = one(bridge(json!({ "type": "host-local" }), json!({ "capabilities": { "ipRanges": true } })));
    let ranges = json!({ "ipRanges": [[{ "subnet": "10.9.0.0/24" }], [{ "subnet": "fd09::/64" }]] });
    check(&Case { capabilities: ranges, ..case });
}

#[test]
fn address_from_cni_args() {
    check(&Case { args: "IgnoreUnknown=true;IP=10.1.0.88", ..one(bridge(v4(), json!({}))) });
}

#[test]
fn dns_from_a_resolv_conf() {
    let ipam = json!({ "type": "host-local", "subnet": "10.1.0.0/24", "resolvConf": "/run/names" });
    let setup =
        "printf 'nameserver 192.0.2.53\\ndomain x.example\\nsearch a b\\noptions ndots:5\\n' > /run/names";
    check(&Case { setup, ..one(bridge(ipam, json!({}))) });
}

#[test]
fn static_addresses() {
    let ipam = json!({ "type": "static",
        "addresses": [{ "address": "10.1.0.5/24", "gateway": "10.1.0.1" }, { "address": "fd01::5/64", "gateway": "fd01::1" }],
        "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "192.0.2.0/24", "gw": "10.1.0.9" }, { "dst": "::/0" }],
        "dns": { "nameservers": ["192.0.2.53"], "domain": "x.example", "search": ["a"], "options": ["ndots:2"] } });
    check(&one(bridge(ipam, json!({ "isGateway": true }))));
}

#[test]
fn static_addresses_from_cni_args() {
    let case = one(bridge(json!({ "type": "static" }), json!({})));
    check(&Case { args: "IgnoreUnknown=true;IP=10.1.0.6/24,fd01::6/64;GATEWAY=10.1.0.1", ..case });
}

#[test]
fn static_addresses_from_the_runtime() {
    let case = one(bridge(json!({ "type": "static" }), json!({ "capabilities": { "ips": true } })));
    check(&Case { capabilities: json!({ "ips": ["10.1.0.7/24"] }), ..case });
}
