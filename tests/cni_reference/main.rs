//! The built-in plugins do what the CNI project's reference plugins do: each case is configured once for the reference
//! plugins and once for `berth` under the plugins' names, in two hosts that are alike, by the CNI project's own
//! `cnitool`; then the results, and what is to be seen of the network after ADD and after DEL, are compared.
//!
//! The reference is built by `tests/stand-ins/cni-plugins.sh`. A case that this kernel cannot have is skipped with a line
//! that says so; with `BERTH_CNI_ALL` set that is a failure.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    reason = "a test stops at the first surprise"
)]

mod cases;
mod look;
#[path = "../support/net.rs"]
mod net;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use std::{fs, io};

use look::{Words, alike, differences, look};
use net::Namespace;
use serde_json::{Value, json};

/// How long the kernel may take to settle (duplicate address detection, carriers) on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A network, and what is around it.
#[derive(Debug, Clone, Default)]
pub struct Case {
    /// The list of plugins.
    pub plugins: Value,
    /// What the runtime says (`CAP_ARGS`).
    pub capabilities: Value,
    /// `CNI_ARGS`.
    pub args: &'static str,
    /// The interface in the pod, `eth0`.
    pub interface: Option<&'static str>,
    /// Run on the host before.
    pub setup: &'static str,
    /// Kinds of links that the kernel must have.
    pub needs: &'static [&'static str],
    /// Run on the host while the pod is attached; what it prints is compared, and must be this.
    pub probe: Option<(&'static str, &'static str)>,
    /// The reference's CHECK does not know what its ADD did.
    pub reference_fails_check: bool,
    /// Differences that are meant, by a part of their text, with the reason.
    pub meant: &'static [(&'static str, &'static str)],
}

/// What berth does otherwise in every network, and why.
const MEANT: [(&str, &str); 10] = [
    ("host links/ifb-of-pod/txqlen", "the kernel's own length: the reference sets none"),
    ("pod sysctl/ipv6/conf/eth0/accept_dad:", "a pod's address is usable at once, with each plugin"),
    ("/ifalias", "the host's end of a veth says whose it is"),
    ("host links/peer-of-eth0/txqlen", "the kernel's own length: the reference sets none"),
    ("/accept_ra:", "no router in a pod's network changes its routes (CVE-2020-10749)"),
    ("host sysctl/ipv6/conf/cni0/accept_dad:", "a gateway's address is usable at once"),
    ("host sysctl/ipv6/conf/peer-of-eth0/accept_dad:", "the host's end of a veth is"),
    ("/arp_notify:", "neighbours are told of a pod's address, with each plugin"),
    ("/ndisc_notify:", "and of an IPv6 address"),
    (
        "/keep_addr_on_down:",
        "an IPv6 address that comes later is kept, too: the reference looks whether there is one",
    ),
];

/// One host with its programs.
struct Side {
    host: Namespace,
    programs: PathBuf,
    folder: tempfile::TempDir,
    case: Case,
}

impl Side {
    fn new(programs: &Path, case: &Case) -> Self {
        let host = Namespace::with_mounts();
        host.sh("ip netns add pod; ip -n pod link set lo up");
        host.sh(case.setup);
        let folder = tempfile::tempdir().unwrap();
        let list = json!({ "cniVersion": "1.0.0", "name": "testnet", "plugins": case.plugins });
        fs::write(folder.path().join("testnet.conflist"), list.to_string()).unwrap();
        Self { host, programs: programs.to_owned(), folder, case: case.clone() }
    }

    fn try_cni(&self, command: &str) -> Output {
        let mut tool = self.host.command(reference().join("cnitool").to_str().unwrap());
        tool.args([command, "testnet", "/run/netns/pod"])
            .env("NETCONFPATH", self.folder.path())
            .env("CNI_PATH", &self.programs)
            .env("CNI_IFNAME", self.case.interface.unwrap_or("eth0"))
            .env("CNI_ARGS", self.case.args);
        if !self.case.capabilities.is_null() {
            tool.env("CAP_ARGS", self.case.capabilities.to_string());
        }
        tool.output().unwrap()
    }

    fn cni(&self, command: &str) -> Value {
        let output = self.try_cni(command);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{command} with {}: {out}{err}", self.programs.display());
        serde_json::from_str(&out).unwrap_or(Value::Null)
    }

    /// What is to be seen now.
    fn look(&self) -> (Value, Words) {
        look(&self.host, &format!("{}{}{}", self.case.plugins, self.case.capabilities, self.case.args))
    }
}

/// The folder of the reference plugins.
fn reference() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        if let Some(folder) = std::env::var_os("BERTH_CNI_REFERENCE") {
            return folder.into();
        }
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stand-ins/cni-plugins.sh");
        let output = Command::new(script).output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().into()
    })
}

/// A folder in which berth has the names of the plugins.
fn own() -> &'static Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::Builder::new().prefix("berth-cni-").tempdir().unwrap();
        for name in berth_cni::BUILT_IN.iter().chain(&berth_cni::program::SERVED_IPAM) {
            std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_berth"), folder.path().join(name)).unwrap();
        }
        folder
    });
    folder.path()
}

/// What the kernel does not have of what a case needs.
fn missing(case: &Case) -> Option<&'static str> {
    let scratch = Namespace::new();
    scratch.sh("ip link add base type veth peer name other");
    case.needs.iter().copied().find(|&need| {
        let make = match need {
            "dummy" => "ip link add x type dummy",
            "ipvlan" => "ip link add link base name x type ipvlan",
            "macvlan" => "ip link add link base name x type macvlan",
            "vlan" => "ip link add link base name x type vlan id 7",
            "vrf" => "ip link add x type vrf table 7",
            "vlan_filtering" => {
                "ip link add bridge0 type bridge vlan_filtering 1; ip -d link show bridge0 | grep 'vlan_filtering 1'"
            }
            "ifb" => "ip link add x type ifb",
            other => panic!("nobody knows how to see whether there is {other}"),
        };
        let made = scratch.try_sh(make);
        if !made.status.success() {
            eprintln!("{make}: {}", String::from_utf8_lossy(&made.stderr));
        }
        !made.status.success()
    })
}

/// The reasons of `meant` that account for none of the differences are differences, too.
fn unexpected(case: &Case, found: &[String]) -> Vec<String> {
    let meant = || MEANT.iter().chain(case.meant);
    found.iter().filter(|text| !meant().any(|(part, _)| text.contains(part))).cloned().collect()
}

/// Looks at both until they are the same, or it is too late.
fn compare_now(case: &Case, when: &str, sides: [&Side; 2], results: [&Value; 2]) -> Vec<String> {
    let until = Instant::now() + PATIENCE;
    loop {
        let [(one, words), (other, own_words)] = sides.map(Side::look);
        let mut found = Vec::new();
        differences(when, &one, &other, &mut found);
        let results = [in_order(results[0], &words), in_order(results[1], &own_words)];
        differences(&format!("{when}: result"), &results[0], &results[1], &mut found);
        let found = unexpected(case, &found);
        if found.is_empty() || Instant::now() > until {
            return found;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The order of a result's lists has a meaning: interfaces are counted.
fn in_order(result: &Value, words: &Words) -> Value {
    let mut result = result.clone();
    for list in ["interfaces", "ips", "routes"] {
        let entries =
            result.get_mut(list).and_then(Value::as_array_mut).map(std::mem::take).unwrap_or_default();
        let numbered =
            entries.iter().enumerate().map(|(place, entry)| (place.to_string(), alike(entry, words)));
        result[list] = Value::Object(numbered.collect());
    }
    result
}

/// Runs a case with two folders of programs: what differs.
fn compare(case: &Case, programs: [&Path; 2]) -> Vec<String> {
    let sides = programs.map(|programs| Side::new(programs, case));
    let both = [&sides[0], &sides[1]];
    let results = both.map(|side| side.cni("add"));
    let mut found = compare_now(case, "after ADD", both, [&results[0], &results[1]]);
    if let Some((probe, expected)) = case.probe {
        for (side, who) in both.into_iter().zip(["the reference", "berth"]) {
            let printed = side.host.sh(probe);
            if printed != expected {
                found.push(format!("probe with {who}: {printed:?} is not {expected:?}"));
            }
        }
    }
    sides[1].cni("check");
    let checked = sides[0].try_cni("check");
    let said = String::from_utf8_lossy(&checked.stderr);
    assert_eq!(checked.status.success(), !case.reference_fails_check, "CHECK of the reference: {said}");
    for side in both {
        side.cni("del");
    }
    found.extend(compare_now(case, "after DEL", both, [&Value::Null, &Value::Null]));
    // Whatever a plugin's rules are made of, none is left of a pod that has gone.
    let rules = sides[1].host.sh("nft list ruleset");
    for ip in results[1]["ips"].as_array().into_iter().flatten() {
        let address =
            ip["address"].as_str().unwrap_or_default().split('/').next().unwrap_or_default().to_owned();
        if rules.contains(&address) {
            found.push(format!("after DEL: rules of berth with {address}: {rules}"));
        }
    }
    // A second DEL of the same is no failure.
    sides[1].cni("del");
    found
}

/// A case as a test.
fn check(case: &Case) {
    if let Some(kind) = missing(case) {
        assert!(std::env::var_os("BERTH_CNI_ALL").is_none(), "this kernel has no {kind}");
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        // Past the test runner, which keeps to itself what a passed test prints.
        // Past the harness, which shows nothing of a test that passes.
        let mut terminal = io::stderr();
        writeln!(terminal, "skipped {name}: this kernel has no {kind}").unwrap();
        return;
    }
    let found = compare(case, [reference(), own()]);
    assert!(found.is_empty(), "{} differences:\n  {}", found.len(), found.join("\n  "));
}

#[test]
fn the_comparison_sees_what_is_different_and_nothing_else() {
    let case = |mtu: u32| Case {
        plugins: json!([{ "type": "bridge", "bridge": "cni0", "isGateway": true, "mtu": mtu,
            "ipam": { "type": "host-local", "subnet": "10.1.0.0/24" } }]),
        ..Case::default()
    };
    assert_eq!(compare(&case(1400), [reference(), reference()]), Vec::<String>::new());
    let (one, other) = (Side::new(reference(), &case(1400)), Side::new(reference(), &case(1300)));
    let results = [one.cni("add"), other.cni("add")];
    let found = compare_now(&case(1400), "", [&one, &other], [&results[0], &results[1]]);
    assert!(found.iter().any(|text| text.contains("pod links/eth0/mtu")), "{found:?}");
    assert!(found.iter().any(|text| text.contains("host links/cni0/mtu")), "{found:?}");
}
