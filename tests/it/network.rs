//! The network: berth follows the node's conflists and reports a broken one, pods reach the outside behind the node's
//! address, and plugins that are not built in are run as programs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};

use crate::support::{Berth, sleeper};
use berth_proto::v1::{
    LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, NetworkConfig, PortMapping, RuntimeConfig,
    StatusRequest, UpdateRuntimeConfigRequest,
};
use tonic::Code;

/// A network namespace that plays the outside network beside the node. It has no route to the pods' addresses.
struct Outside {
    process: Child,
}

impl Outside {
    fn behind(berth: &Berth) -> Self {
        let mut process = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo ready && exec sleep infinity"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0_u8; 6];
        std::io::Read::read_exact(process.stdout.as_mut().unwrap(), &mut ready).unwrap();
        let outside = Self { process };
        let pid = outside.process.id().to_string();
        let node = |command: &str| {
            let output = berth.on_host(&["sh", "-ec", command]);
            assert!(output.status.success(), "{command}: {output:?}");
        };
        node(&format!("ip link add out0 type veth peer name out1 netns {pid}"));
        node(
            "ip addr add 198.51.100.1/24 dev out0; ip addr add fd99::1/64 dev out0 nodad; ip link set out0 up",
        );
        let script = "ip link set lo up; ip addr add 198.51.100.2/24 dev out1; \
                      ip addr add fd99::2/64 dev out1 nodad; ip link set out1 up";
        let target = format!("--net=/proc/{pid}/ns/net");
        let status = Command::new("nsenter").args([&target, "--", "sh", "-ec", script]).status().unwrap();
        assert!(status.success());
        outside
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

async fn pings(berth: &mut Berth, container: &str, address: &str) -> bool {
    // The first packets can be lost during address resolution.
    let answer = berth.exec(container, &["ping", "-c", "3", "-W", "1", address], 0).await.unwrap();
    String::from_utf8_lossy(&answer.stdout).contains("bytes from")
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_reach_the_outside_with_the_nodes_address() {
    let mut berth = Berth::start().await;
    let outside = Outside::behind(&berth);
    let pod = berth.run_pod(berth.pod_config("inside")).await;
    let container = berth.run(&pod, sleeper("c")).await;
    assert!(pings(&mut berth, &container, "198.51.100.2").await, "IPv4");
    assert!(pings(&mut berth, &container, "fd99::2").await, "IPv6");
    drop(outside);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

const CONFLIST: &str = r#"{ "cniVersion": "1.0.0", "name": "joined", "plugins": [
  { "type": "bridge", "bridge": "joined0", "isGateway": true, "ipMasq": MASQUERADE, "mtu": 1400,
    "ipam": { "type": "host-local", "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "192.0.2.0/24", "gw": "10.66.0.9" }],
      "ranges": [[{ "subnet": "10.66.0.0/24", "rangeStart": "10.66.0.20", "rangeEnd": "10.66.0.21" }],
                 [{ "subnet": "fd66::/64" }]] } } ] }"#;

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_conflist_configures_the_network() {
    let mut berth = Berth::start().await;
    fs::write(berth.path("net.d/10-joined.conflist"), CONFLIST.replace("MASQUERADE", "false")).unwrap();
    let pod = berth.run_pod(berth.pod_config("one")).await;
    let network = berth.pod_status(&pod).await.network.unwrap();
    assert_eq!(network.ip, "10.66.0.20");
    assert!(network.additional_ips[0].ip.starts_with("fd66::"), "{network:?}");
    let container = berth.run(&pod, sleeper("c")).await;
    let link = berth.sh(&container, "cat /sys/class/net/eth0/mtu; ip addr show eth0; ip route").await;
    assert!(link.starts_with("1400\n"), "{link}");
    assert!(link.contains("10.66.0.20/24") && link.contains("fd66::"), "{link}");
    assert!(link.contains("default via 10.66.0.1") && link.contains("192.0.2.0/24 via 10.66.0.9"), "{link}");
    // Without masquerade the outside has no route for its replies.
    let outside = Outside::behind(&berth);
    assert!(pings(&mut berth, &container, "10.66.0.1").await);
    assert!(!pings(&mut berth, &container, "198.51.100.2").await);
    drop(outside);

    let second = berth.run_pod(berth.pod_config("two")).await;
    assert_eq!(berth.pod_status(&second).await.network.unwrap().ip, "10.66.0.21");
    let full = berth.try_run_pod(berth.pod_config("three")).await.unwrap_err();
    assert!(
        full.message().contains("10.66.0.20-10.66.0.21") || full.message().contains("10.66.0.0/24"),
        "{full}"
    );
    berth.remove_pod(&second).await;
    let third = berth.run_pod(berth.pod_config("three")).await;
    assert_eq!(
        berth.pod_status(&third).await.network.unwrap().ip,
        "10.66.0.21",
        "a freed address is used again"
    );
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

async fn network_condition(berth: &mut Berth) -> (bool, String) {
    let status = berth.runtime.status(StatusRequest { verbose: false }).await.unwrap().into_inner();
    let conditions = status.status.unwrap().conditions;
    let network = conditions.into_iter().find(|condition| condition.r#type == "NetworkReady").unwrap();
    (network.status, format!("{}: {}", network.reason, network.message))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_conflist_is_reported_and_can_be_fixed_without_a_restart() {
    let mut berth = Berth::start().await;
    assert!(network_condition(&mut berth).await.0);
    let file = berth.path("net.d/05-broken.conflist");
    fs::write(&file, "{ \"name\": \"x\",\n \"plugins\": [ { \"type\": \"bridge\", } ] }").unwrap();
    let (ready, why) = network_condition(&mut berth).await;
    assert!(!ready && why.contains("05-broken.conflist") && why.contains("line 2"), "{why}");
    let refused = berth.try_run_pod(berth.pod_config("refused")).await.unwrap_err();
    assert!(refused.message().contains("05-broken.conflist"), "{refused}");
    // A pod in the host's network does not need a conflist.
    let mut config = berth.pod_config("hostnet");
    let options = NamespaceOption { network: NamespaceMode::Node.into(), ..NamespaceOption::default() };
    let context = LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
    config.linux.as_mut().unwrap().security_context = Some(context);
    berth.run_pod(config).await;
    fs::write(&file, r#"{ "name": "x", "cniVersion": "1.0.0", "plugins": [{ "type": "nobody-has-it" }] }"#)
        .unwrap();
    let (ready, why) = network_condition(&mut berth).await;
    assert!(!ready && why.contains("nobody-has-it"), "{why}");
    fs::remove_file(&file).unwrap();
    assert!(network_condition(&mut berth).await.0);
    berth.run_pod(berth.pod_config("accepted")).await;
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

/// A plugin that records its input and returns an address.
const PLUGIN: &str = r#"#!/bin/sh
folder=${0%/*}
cat > "$folder/$CNI_COMMAND.stdin"
echo "$CNI_CONTAINERID $CNI_IFNAME $CNI_ARGS" > "$folder/$CNI_COMMAND.env"
[ ! -e "$folder/fail" ] || { echo '{ "cniVersion": "1.0.0", "code": 11, "msg": "not today" }'; exit 1; }
[ "$CNI_COMMAND" != ADD ] || {
  nsenter --net="$CNI_NETNS" ip link show lo > "$folder/links"
  echo '{ "cniVersion": "1.0.0", "interfaces": [{ "name": "eth0", "sandbox": "'$CNI_NETNS'" }],
          "ips": [{ "address": "203.0.113.7/24", "interface": 0 }] }'
}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn external_plugins_are_run_as_the_cni_specification_requires() {
    let mut berth = Berth::start().await;
    let bin = berth.path("bin");
    fs::create_dir(&bin).unwrap();
    fs::write(bin.join("strange"), PLUGIN).unwrap();
    fs::set_permissions(bin.join("strange"), fs::Permissions::from_mode(0o755)).unwrap();
    let config = r#"{ "cniVersion": "1.0.0", "name": "strange-net", "plugins": [{ "type": "strange", "key": "kept" }] }"#;
    fs::write(berth.path("net.d/10.conflist"), config).unwrap();
    let pod = berth.run_pod(berth.pod_config("strange")).await;
    assert_eq!(berth.pod_status(&pod).await.network.unwrap().ip, "203.0.113.7");
    let read = |name: &str| fs::read_to_string(bin.join(name)).unwrap();
    assert!(read("ADD.stdin").contains("\"key\":\"kept\"") && read("ADD.stdin").contains("strange-net"));
    assert!(read("ADD.env").starts_with(&format!("{pod} eth0 ")), "{}", read("ADD.env"));
    assert!(read("ADD.env").contains("K8S_POD_NAME=strange"));
    assert!(read("links").contains("LOOPBACK"));
    berth.remove_pod(&pod).await;
    assert!(read("DEL.stdin").contains("203.0.113.7"), "DEL must receive the result of ADD");

    fs::write(bin.join("fail"), "").unwrap();
    let failed = berth.try_run_pod(berth.pod_config("failed")).await.unwrap_err();
    assert!(failed.message().contains("not today") && failed.message().contains("strange"), "{failed}");
    // The plugin also failed to undo its work. The daemon repeats that at its next start.
    fs::remove_file(bin.join("fail")).unwrap();
    fs::remove_file(bin.join("DEL.env")).unwrap();
    berth.kill();
    berth.restart().await;
    let until = std::time::Instant::now() + crate::support::PATIENCE;
    while !bin.join("DEL.env").exists() && std::time::Instant::now() < until {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn host_ports_are_refused_without_a_portmap_plugin() {
    let mut berth = Berth::start().await;
    let text = CONFLIST.replace("MASQUERADE", "true");
    fs::write(berth.path("net.d/10-joined.conflist"), text).unwrap();
    let mut config = berth.pod_config("ports");
    config.port_mappings =
        vec![PortMapping { container_port: 80, host_port: 8080, ..PortMapping::default() }];
    let refused = berth.try_run_pod(config.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented, "{refused}");
    assert!(refused.message().contains("8080") && refused.message().contains("portMappings"), "{refused}");
    config.port_mappings[0].host_port = 0;
    berth.run_pod(config).await;
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn leftovers_of_unknown_pods_are_freed_at_the_start_and_nothing_else() {
    let mut berth = Berth::start().await;
    let mut config = berth.pod_config("lives");
    config.port_mappings =
        vec![PortMapping { container_port: 80, host_port: 8080, ..PortMapping::default() }];
    let pod = berth.run_pod(config).await;
    let ip = berth.pod_status(&pod).await.network.unwrap().ip;
    berth.kill();
    // Leftovers of a pod without a record: its attachment record can have been lost.
    let gone = "ab".repeat(32);
    let addresses = berth.path("addresses/testbr0");
    fs::write(addresses.join("10.77.0.99"), format!("{gone}\r\neth0")).unwrap();
    let leftovers = format!(
        "ip link add bvleft type veth peer name bvright; ip link set bvleft alias 'berth testbr0 {gone}'; \
         nft add element inet berth ports4 '{{ tcp . 9090 comment \"testbr0 {gone} eth0\" : 10.77.0.99 . 90 }}'; \
         ip link add others type veth peer name others1; ip link set others alias 'somebody else'"
    );
    let made = berth.on_host(&["sh", "-ec", &leftovers]);
    assert!(made.status.success(), "{made:?}");
    berth.restart().await;
    let rules = |berth: &Berth| {
        let listed = berth.on_host(&["nft", "list", "table", "inet", "berth"]);
        String::from_utf8_lossy(&listed.stdout).into_owned()
    };
    let until = std::time::Instant::now() + crate::support::PATIENCE;
    while (addresses.join("10.77.0.99").exists() || rules(&berth).contains("9090"))
        && std::time::Instant::now() < until
    {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let links = berth.on_host(&["ip", "link"]);
    let links = String::from_utf8_lossy(&links.stdout).into_owned();
    assert!(!links.contains("bvleft"), "{links}");
    assert!(links.contains("others") && links.contains(&format!("bv{}", &pod[..13])), "{links}");
    assert!(!addresses.join("10.77.0.99").exists() && addresses.join(&ip).exists());
    assert!(!rules(&berth).contains("9090") && rules(&berth).contains("8080"), "{}", rules(&berth));
    assert_eq!(berth.pod_status(&pod).await.network.unwrap().ip, ip);
    let removed = berth.on_host(&["ip", "link", "del", "others"]);
    assert!(removed.status.success(), "{removed:?}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

/// A template in the format of containerd's `conf_template`.
const TEMPLATE: &str = r#"{ "cniVersion": "1.0.0", "name": "templated", "plugins": [
  { "type": "bridge", "bridge": "templ0", "isGateway": true, "ipMasq": true,
    "ipam": { "type": "host-local",
      "ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}],
      "routes": [{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{$route}}"}{{end}}] } } ] }"#;

#[tokio::test(flavor = "multi_thread")]
async fn the_kubelets_pod_cidrs_fill_a_conflist_template() {
    let folder = tempfile::tempdir().unwrap();
    let template = folder.path().join("template");
    fs::write(&template, TEMPLATE).unwrap();
    let mut berth =
        Berth::start_with(&format!("cni_conf_template = {:?}", template.display().to_string())).await;
    let update = |pod_cidr: &str| UpdateRuntimeConfigRequest {
        runtime_config: Some(RuntimeConfig {
            network_config: Some(NetworkConfig { pod_cidr: pod_cidr.to_owned() }),
        }),
    };
    let wrong = berth.runtime.update_runtime_config(update("everything")).await.unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument, "{wrong}");
    berth.runtime.update_runtime_config(update("10.78.0.0/24,fd78::/64")).await.unwrap();
    let pod = berth.run_pod(berth.pod_config("templated")).await;
    let network = berth.pod_status(&pod).await.network.unwrap();
    assert!(network.ip.starts_with("10.78.0."), "{network:?}");
    assert!(network.additional_ips[0].ip.starts_with("fd78::"), "{network:?}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
