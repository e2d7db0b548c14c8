//! Networks with plugins that change what a plugin before them created.

use super::*;

#[test]
fn tuning() {
    check(&chained(json!({ "type": "tuning", "mac": "02:11:22:33:44:66", "mtu": 1300, "promisc": true,
        "allmulti": true, "txQLen": 777, "sysctl": { "net.ipv4.conf.IFNAME.arp_filter": "1" } })));
}

#[test]
fn tuning_from_args_in_the_config() {
    check(&chained(
        json!({ "type": "tuning", "mtu": 1400, "sysctl": { "net.ipv4.conf.IFNAME.arp_filter": "0" },
        "args": { "cni": { "mac": "02:11:22:33:44:66", "mtu": 1300, "promisc": true, "allmulti": true,
            "txQLen": 777, "sysctl": { "net.ipv4.conf.IFNAME.arp_filter": "1" } } } }),
    ));
}

#[test]
fn tuning_from_the_runtime() {
    let case = chained(json!({ "type": "tuning", "capabilities": { "mac": true } }));
    check(&Case { capabilities: json!({ "mac": "02:11:22:33:44:77" }), ..case });
}

fn portmap(keys: Value, probe: Option<(&'static str, &'static str)>) {
    let case = chained(plugin(json!({ "type": "portmap", "capabilities": { "portMappings": true } }), keys));
    let mappings = json!({ "portMappings": [
        { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
        { "hostPort": 8081, "containerPort": 81, "protocol": "udp", "hostIP": "192.0.2.1" }] });
    let setup = "ip link add ext0 type veth peer name ext1; ip addr add 192.0.2.1/24 dev ext0
        ip link set ext0 up; ip link set ext1 up";
    check(&Case { capabilities: mappings, setup, probe, ..case });
}

#[test]
fn portmap_from_an_address_of_the_host() {
    const PROBE: &str = "ip netns exec pod busybox nc -l -p 80 -e echo pod & sleep 0.5
        busybox nc -w 5 192.0.2.1 8080 </dev/null; wait";
    portmap(json!({}), Some((PROBE, "pod")));
}

#[test]
fn portmap_from_localhost() {
    const PROBE: &str = "ip netns exec pod busybox nc -l -p 80 -e echo pod & sleep 0.5
        busybox nc -w 5 127.0.0.1 8080 </dev/null; wait";
    portmap(json!({ "snat": true }), Some((PROBE, "pod")));
}

#[test]
fn portmap_without_snat() {
    portmap(json!({ "snat": false }), None);
}

#[test]
fn portmap_with_nftables() {
    portmap(json!({ "backend": "nftables" }), None);
}

#[test]
fn bandwidth() {
    check(&Case {
        needs: &["ifb"],
        ..chained(json!({ "type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 800_000,
        "egressRate": 4_000_000, "egressBurst": 400_000 }))
    });
}

#[test]
fn bandwidth_one_way() {
    check(&Case {
        needs: &["ifb"],
        ..chained(json!({ "type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 800_000 }))
    });
}

#[test]
fn bandwidth_from_the_runtime() {
    let case = chained(json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } }));
    let limits = json!({ "bandwidth": { "ingressRate": 8_000_000, "ingressBurst": 800_000,
        "egressRate": 4_000_000, "egressBurst": 400_000 } });
    check(&Case { capabilities: limits, needs: &["ifb"], ..case });
}

#[test]
fn source_based_routes() {
    let expected_differences =
        &[("pod routes6: only the reference has", "it copies all routes to the table of the first address")];
    let case = chained(json!({ "type": "sbr" }));
    check(&Case { reference_fails_check: true, expected_differences, ..case });
}

#[test]
fn source_based_routes_in_a_table() {
    check(&chained(json!({ "type": "sbr", "table": 123 })));
}

fn in_vrf(keys: Value) {
    // The plugin moves the routes, and the reference's bridge plugin then does not find them at CHECK.
    check(&Case { needs: &["vrf"], reference_fails_check: true, ..chained(keys) });
}

#[test]
fn vrf() {
    in_vrf(json!({ "type": "vrf", "vrfname": "blue" }));
}

#[test]
fn vrf_with_a_table() {
    in_vrf(json!({ "type": "vrf", "vrfname": "blue", "table": 55 }));
}

#[test]
fn firewall() {
    check(&chained(json!({ "type": "firewall" })));
}

#[test]
fn firewall_same_bridge() {
    check(&chained(json!({ "type": "firewall", "ingressPolicy": "same-bridge" })));
}
