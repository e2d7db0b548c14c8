//! Networks of the plugins that create an interface without a bridge.

use super::*;

#[test]
fn ptp() {
    let probe = Some(("ip netns exec pod busybox ping -c1 -W5 10.1.0.1 >/dev/null && echo yes", "yes"));
    check(&Case { probe, ..one(json!({ "type": "ptp", "ipam": dual() })) });
}

#[test]
fn ptp_with_mtu_masquerade_and_names() {
    let ptp = json!({ "type": "ptp", "mtu": 1350, "ipMasq": true, "ipam": v4(), "dns": { "nameservers": ["192.0.2.53"] } });
    check(&one(ptp));
}

fn macvlan(keys: Value) {
    let probe = Some(("ip netns exec pod busybox ping -c1 -W5 10.1.0.254 >/dev/null && echo yes", "yes"));
    let case = one(plugin(json!({ "type": "macvlan", "master": "par0", "ipam": v4() }), keys));
    // The other end must be in another namespace, because packets to own addresses do not leave a host.
    let setup =
        "ip netns add out; ip link add par0 address 02:00:00:00:00:01 type veth peer name far0 netns out
        ip -n out link set far0 address 02:00:00:00:00:02; ip -n out addr add 10.1.0.254/24 dev far0
        ip -n out link set far0 up; ip link set par0 up";
    check(&Case { setup, needs: &["macvlan"], probe, ..case });
}

#[test]
fn macvlan_bridge() {
    macvlan(json!({ "mode": "bridge" }));
}

#[test]
fn macvlan_private() {
    macvlan(json!({ "mode": "private", "mtu": 1400 }));
}

#[test]
fn macvlan_vepa() {
    macvlan(json!({ "mode": "vepa" }));
}

#[test]
fn macvlan_passthru() {
    macvlan(json!({ "mode": "passthru" }));
}

#[test]
fn macvlan_of_the_default_route() {
    let case = one(json!({ "type": "macvlan", "ipam": v4() }));
    let setup = "ip link add par0 address 02:00:00:00:00:01 type veth peer name far0 address 02:00:00:00:00:02
        ip link set far0 up; ip link set par0 up; ip addr add 192.0.2.1/24 dev par0; ip route add default via 192.0.2.2";
    check(&Case { setup, needs: &["macvlan"], ..case });
}

#[test]
fn ipvlan_l2() {
    let ipvlan = json!({ "type": "ipvlan", "master": "par0", "ipam": v4() });
    check(&Case { setup: PARENT, needs: &["ipvlan"], ..one(ipvlan) });
}

#[test]
fn ipvlan_l3() {
    let ipvlan = json!({ "type": "ipvlan", "master": "par0", "mode": "l3", "mtu": 1400, "ipam": v4() });
    check(&Case { setup: PARENT, needs: &["ipvlan"], ..one(ipvlan) });
}

#[test]
fn ipvlan_l3s() {
    let ipvlan = json!({ "type": "ipvlan", "master": "par0", "mode": "l3s", "ipam": v4() });
    check(&Case { setup: PARENT, needs: &["ipvlan"], ..one(ipvlan) });
}

#[test]
fn vlan() {
    let vlan = json!({ "type": "vlan", "master": "par0", "vlanId": 42, "mtu": 1400, "ipam": v4() });
    check(&Case { setup: PARENT, needs: &["vlan"], ..one(vlan) });
}

#[test]
fn dummy() {
    check(&Case { needs: &["dummy"], ..one(json!({ "type": "dummy", "ipam": dual() })) });
}

#[test]
fn host_device() {
    check(&Case { setup: PARENT, ..one(json!({ "type": "host-device", "device": "par0", "ipam": v4() })) });
}

#[test]
fn host_device_by_its_hardware_address() {
    let device = json!({ "type": "host-device", "hwaddr": "02:00:00:00:00:01" });
    check(&Case { setup: PARENT, ..one(device) });
}

#[test]
fn loopback() {
    let setup = "ip -n pod link set lo down";
    check(&Case { setup, interface: Some("lo"), ..one(json!({ "type": "loopback" })) });
}
