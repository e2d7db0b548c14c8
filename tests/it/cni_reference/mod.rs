//! The built-in plugins behave like the CNI project's reference plugins. Each case is configured in two equal hosts
//! with the CNI project's `cnitool`: once for the reference plugins and once for `berth` under the plugins' names.
//! The results and the visible state of the network after ADD and after DEL are compared.
//!
//! `tests/stand-ins/cni-plugins.sh` builds the reference. A case that this kernel does not support is skipped with a
//! message; with `BERTH_CNI_ALL` it fails.

mod cases;
mod look;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use std::{fs, io};

use crate::support::net::Namespace;
use look::{Placeholders, differences, normalized, snapshot};
use serde_json::{Value, json};

/// The longest time that the kernel can take to settle (duplicate address detection, carriers) on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A network and its environment.
#[derive(Debug, Clone, Default)]
pub struct Case {
    /// The list of plugins.
    pub plugins: Value,
    /// The capability arguments from the runtime (`CAP_ARGS`).
    pub capabilities: Value,
    /// `CNI_ARGS`.
    pub args: &'static str,
    /// The interface in the pod. The default is `eth0`.
    pub interface: Option<&'static str>,
    /// A script that prepares the host.
    pub setup: &'static str,
    /// The kinds of links that the kernel must support.
    pub needs: &'static [&'static str],
    /// A script that runs on the host while the pod is attached, and the output that it must have.
    pub probe: Option<(&'static str, &'static str)>,
    /// The reference's CHECK fails after its ADD.
    pub reference_fails_check: bool,
    /// Expected differences as parts of their text, with the reason.
    pub expected_differences: &'static [(&'static str, &'static str)],
}

/// The expected differences of berth in every network, with the reason.
const EXPECTED_DIFFERENCES: [(&str, &str); 10] = [
    ("host links/ifb-of-pod/txqlen", "the kernel's default length: the reference sets none"),
    ("pod sysctl/ipv6/conf/eth0/accept_dad:", "a pod's address is usable immediately with every plugin"),
    ("/ifalias", "the host's end of a veth has the pod in its alias"),
    ("host links/peer-of-eth0/txqlen", "the kernel's default length: the reference sets none"),
    ("/accept_ra:", "routers in a pod's network do not change its routes (CVE-2020-10749)"),
    ("host sysctl/ipv6/conf/cni0/accept_dad:", "a gateway's address is usable immediately"),
    (
        "host sysctl/ipv6/conf/peer-of-eth0/accept_dad:",
        "the address of the host's end of a veth is usable immediately",
    ),
    ("/arp_notify:", "other hosts are notified of a pod's address with every plugin"),
    ("/ndisc_notify:", "other hosts are notified of an IPv6 address"),
    (
        "/keep_addr_on_down:",
        "an IPv6 address that is added later is kept, too: the reference sets this only if there is one",
    ),
];

/// One of the two hosts, with its plugin programs.
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

    /// Returns the current visible state.
    fn snapshot(&self) -> (Value, Placeholders) {
        snapshot(&self.host, &format!("{}{}{}", self.case.plugins, self.case.capabilities, self.case.args))
    }
}

/// Returns the folder of the reference plugins.
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

/// Returns a folder with links to berth under the names of the plugins.
fn berth_plugins() -> &'static Path {
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

/// Returns the first requirement of a case that this kernel does not support.
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
            other => panic!("unknown requirement {other}"),
        };
        let made = scratch.try_sh(make);
        if !made.status.success() {
            eprintln!("{make}: {}", String::from_utf8_lossy(&made.stderr));
        }
        !made.status.success()
    })
}

/// Returns the differences that are not expected.
fn unexpected(case: &Case, found: &[String]) -> Vec<String> {
    let expected_differences = || EXPECTED_DIFFERENCES.iter().chain(case.expected_differences);
    found
        .iter()
        .filter(|text| !expected_differences().any(|(part, _)| text.contains(part)))
        .cloned()
        .collect()
}

/// Compares both sides repeatedly until they are equal or the time is over.
fn compare_now(case: &Case, when: &str, sides: [&Side; 2], results: [&Value; 2]) -> Vec<String> {
    let until = Instant::now() + PATIENCE;
    loop {
        let [(one, placeholders), (other, own_words)] = sides.map(Side::snapshot);
        let mut found = Vec::new();
        differences(when, &one, &other, &mut found);
        let results = [in_order(results[0], &placeholders), in_order(results[1], &own_words)];
        differences(&format!("{when}: result"), &results[0], &results[1], &mut found);
        let found = unexpected(case, &found);
        if found.is_empty() || Instant::now() > until {
            return found;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Normalizes a result and keeps the order of its lists: interfaces are referenced by index.
fn in_order(result: &Value, placeholders: &Placeholders) -> Value {
    let mut result = result.clone();
    for list in ["interfaces", "ips", "routes"] {
        let entries =
            result.get_mut(list).and_then(Value::as_array_mut).map(std::mem::take).unwrap_or_default();
        let numbered = entries
            .iter()
            .enumerate()
            .map(|(place, entry)| (place.to_string(), normalized(entry, placeholders)));
        result[list] = Value::Object(numbered.collect());
    }
    result
}

/// Runs a case with two folders of programs and returns the differences.
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
    let stderr = String::from_utf8_lossy(&checked.stderr);
    assert_eq!(checked.status.success(), !case.reference_fails_check, "CHECK of the reference: {stderr}");
    for side in both {
        side.cni("del");
    }
    found.extend(compare_now(case, "after DEL", both, [&Value::Null, &Value::Null]));
    // No rules of a removed pod are left.
    let rules = sides[1].host.sh("nft list ruleset");
    for ip in results[1]["ips"].as_array().into_iter().flatten() {
        let address =
            ip["address"].as_str().unwrap_or_default().split('/').next().unwrap_or_default().to_owned();
        if rules.contains(&address) {
            found.push(format!("after DEL: rules of berth with {address}: {rules}"));
        }
    }
    // A second DEL succeeds.
    sides[1].cni("del");
    found
}

/// Runs a case as a test.
fn check(case: &Case) {
    if let Some(kind) = missing(case) {
        assert!(std::env::var_os("BERTH_CNI_ALL").is_none(), "this kernel does not support {kind}");
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        // Writes to stderr directly, because the test harness captures the output of a passing test.
        let mut terminal = io::stderr();
        writeln!(terminal, "skipped {name}: this kernel does not support {kind}").unwrap();
        return;
    }
    let found = compare(case, [reference(), berth_plugins()]);
    assert!(found.is_empty(), "{} differences:\n  {}", found.len(), found.join("\n  "));
}

#[test]
fn the_comparison_finds_real_differences_only() {
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
