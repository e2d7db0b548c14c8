//! Networks of the plugin `bridge`.

use super::*;

#[test]
fn plain() {
    check(&one(bridge(v4(), json!({}))));
}

#[test]
fn plain_ipv6() {
    check(&one(bridge(v6(), json!({ "isGateway": true }))));
}

#[test]
fn gateway() {
    let probe = Some(("ip netns exec pod busybox ping -c1 -W5 10.1.0.1 >/dev/null && echo yes", "yes"));
    check(&Case { probe, ..one(bridge(v4(), json!({ "isGateway": true }))) });
}

#[test]
fn default_gateway_dual_stack() {
    let probe = Some(("ip netns exec pod busybox ping -c1 -W5 fd01::1 >/dev/null && echo yes", "yes"));
    let mut ipam = dual();
    ipam["routes"] = json!([{ "dst": "192.0.2.0/24" }]);
    check(&Case { probe, ..one(bridge(ipam, json!({ "isDefaultGateway": true }))) });
}

#[test]
fn masquerade() {
    // The other end has no route to the pod.
    let setup = "ip netns add out; ip link add o0 type veth peer name o1 netns out; ip link set o0 up
        ip addr add 198.51.100.1/24 dev o0; ip addr add fd99::1/64 dev o0 nodad
        ip -n out link set o1 up; ip -n out addr add 198.51.100.2/24 dev o1
        ip -n out addr add fd99::2/64 dev o1 nodad
        echo 1 > /proc/sys/net/ipv6/conf/all/forwarding";
    let probe = Some((
        "for to in 198.51.100.2 fd99::2; do ip netns exec pod busybox ping -c3 -W5 $to >/dev/null && echo yes; done",
        "yes\nyes",
    ));
    check(&Case { setup, probe, ..one(bridge(dual(), json!({ "isGateway": true, "ipMasq": true }))) });
}

#[test]
fn masquerade_with_nftables() {
    let keys = json!({ "isGateway": true, "ipMasq": true, "ipMasqBackend": "nftables" });
    check(&one(bridge(dual(), keys)));
}

#[test]
fn hairpin() {
    check(&one(bridge(v4(), json!({ "hairpinMode": true }))));
}

#[test]
fn promiscuous() {
    check(&one(bridge(v4(), json!({ "promiscMode": true }))));
}

#[test]
fn mtu() {
    check(&one(bridge(v4(), json!({ "isGateway": true, "mtu": 1400 }))));
}

#[test]
fn without_addresses() {
    check(&one(json!({ "type": "bridge", "bridge": "cni0" })));
}

#[test]
fn vlan() {
    let case = one(bridge(v4(), json!({ "isGateway": true, "vlan": 100 })));
    const LOWEST: &str =
        "a bridge without an address has the lowest hardware address of its ports, which are random";
    let expected_differences = &[
        ("/address: reference \"mac-of-host", LOWEST),
        ("/mac: reference \"mac-of-host", LOWEST),
        ("host links/peer-of-cni0.100/txqlen", "the kernel's default length, as for pods"),
        ("conf/cni0.100/accept_dad", "a gateway's address is usable immediately"),
        ("/designated_port: ", "the host's own port is there before the pod's"),
    ];
    check(&Case { needs: &["vlan", "vlan_filtering"], expected_differences, ..case });
}

#[test]
fn vlan_without_default() {
    let case = one(bridge(v4(), json!({ "vlan": 100, "preserveDefaultVlan": false })));
    check(&Case { needs: &["vlan_filtering"], ..case });
}

#[test]
fn vlan_trunk() {
    let trunk = json!([{ "id": 42 }, { "minID": 100, "maxID": 104 }]);
    check(&Case { needs: &["vlan_filtering"], ..one(bridge(v4(), json!({ "vlanTrunk": trunk }))) });
}

#[test]
fn isolated_port() {
    check(&one(bridge(v4(), json!({ "portIsolation": true }))));
}

#[test]
fn mac_spoof_check() {
    check(&one(bridge(v4(), json!({ "macspoofchk": true }))));
}

#[test]
fn pod_interface_down() {
    check(&one(json!({ "type": "bridge", "bridge": "cni0", "disableContainerInterface": true })));
}

#[test]
fn forced_address() {
    let setup = "ip link add cni0 type bridge; ip addr add 10.1.0.77/24 dev cni0; ip link set cni0 up";
    check(&Case { setup, ..one(bridge(v4(), json!({ "isGateway": true, "forceAddress": true }))) });
}

#[test]
fn mac_from_the_runtime() {
    let case = one(bridge(v4(), json!({ "capabilities": { "mac": true } })));
    check(&Case { capabilities: json!({ "mac": "02:11:22:33:44:55" }), ..case });
}

#[test]
fn mac_from_cni_args() {
    check(&Case { args: "MAC=02:11:22:33:44:55;IgnoreUnknown=true", ..one(bridge(v4(), json!({}))) });
}

#[test]
fn mac_of_the_config_precedes_cni_args() {
    let keys = json!({ "args": { "cni": { "mac": "02:11:22:33:44:88" } } });
    check(&Case { args: "MAC=02:11:22:33:44:55;IgnoreUnknown=true", ..one(bridge(v4(), keys)) });
}

#[test]
fn duplicate_address_detection() {
    let probe = Some((
        "ip netns exec pod sh -c 'cd /proc/sys/net/ipv6/conf/eth0; cat accept_dad enhanced_dad'
         ip -n pod -6 addr show dev eth0 | grep -c tentative || true",
        "1\n1\n0",
    ));
    check(&Case { probe, ..one(bridge(v6(), json!({ "isGateway": true, "enabledad": true }))) });
}

#[test]
fn a_duplicate_address_is_refused() {
    let setup = "ip link add cni0 type bridge; ip link set cni0 up; ip netns add other
        ip link add p0 master cni0 type veth peer name p1 netns other; ip link set p0 up
        ip -n other link set p1 up; ip -n other addr add fd01::5/64 dev p1 nodad";
    let ipam = json!({ "type": "static", "addresses": [{ "address": "fd01::5/64", "gateway": "fd01::1" }] });
    let case = Case { setup, ..one(bridge(ipam, json!({ "enabledad": true }))) };
    for programs in [reference(), berth_plugins()] {
        let side = Side::new(programs, &case);
        let output = side.try_cni("add");
        let output_text =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(
            !output.status.success() && output_text.contains("fd01::5"),
            "{}: {output_text}",
            programs.display()
        );
        side.cni("del");
    }
}
