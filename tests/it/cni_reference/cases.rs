//! The networks that are compared. Every key that the plugins' documentation describes is in one of them.

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

mod bridges {
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
        let ipam =
            json!({ "type": "static", "addresses": [{ "address": "fd01::5/64", "gateway": "fd01::1" }] });
        let case = Case { setup, ..one(bridge(ipam, json!({ "enabledad": true }))) };
        for programs in [reference(), berth_plugins()] {
            let side = Side::new(programs, &case);
            let output = side.try_cni("add");
            let output_text = String::from_utf8_lossy(&output.stderr).into_owned()
                + &String::from_utf8_lossy(&output.stdout);
            assert!(
                !output.status.success() && output_text.contains("fd01::5"),
                "{}: {output_text}",
                programs.display()
            );
            side.cni("del");
        }
    }
}

mod addresses {
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
        let case =
            one(bridge(json!({ "type": "host-local" }), json!({ "capabilities": { "ipRanges": true } })));
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
        let setup = "printf 'nameserver 192.0.2.53\\ndomain x.example\\nsearch a b\\noptions ndots:5\\n' > /run/names";
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
}

mod interfaces {
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
        check(&Case {
            setup: PARENT,
            ..one(json!({ "type": "host-device", "device": "par0", "ipam": v4() }))
        });
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
}

mod changes {
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
        let case =
            chained(plugin(json!({ "type": "portmap", "capabilities": { "portMappings": true } }), keys));
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
        let expected_differences = &[(
            "pod routes6: only the reference has",
            "it copies all routes to the table of the first address",
        )];
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
}
