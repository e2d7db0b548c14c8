//! `berth check` on a node whose settings are changed: in a network namespace, and with a private configuration and
//! private files. Runs as root.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};

/// Runs `berth check` in a new network namespace whose IPv4 forwarding is `forward`.
fn check(forward: u8, folder: &Path, arguments: &[&str]) -> Output {
    let script = format!("echo {forward} > /proc/sys/net/ipv4/ip_forward && exec \"$@\"");
    Command::new("unshare")
        .args(["--net", "sh", "-c", &script, "sh", env!("CARGO_BIN_EXE_berth"), "check", "--config"])
        .arg(folder.join("config.toml"))
        .args(arguments)
        .output()
        .unwrap()
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::create_dir(path.join("net.d")).unwrap();
    let config =
        format!("root = \"{0}/root\"\nstate = \"{0}/run\"\ncni_conf_dir = \"{0}/net.d\"\n", path.display());
    fs::write(path.join("config.toml"), config).unwrap();
    folder
}

fn rows(output: &Output) -> Vec<serde_json::Value> {
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    report["rows"].as_array().unwrap().clone()
}

fn row(output: &Output, what: &str) -> serde_json::Value {
    let found = rows(output).into_iter().find(|row| row["what"] == what);
    found.unwrap_or_else(|| unreachable!("no row {what}: {}", String::from_utf8_lossy(&output.stdout)))
}

#[test]
fn a_sysctl_is_reported_with_the_command_that_sets_it() {
    let folder = folder();
    let off = check(0, folder.path(), &["--json"]);
    assert!(off.status.success(), "{off:?}");
    let forwarding = row(&off, "IPv4 forwarding");
    assert_eq!(forwarding["found"], "no", "{forwarding}");
    assert!(forwarding["fix"].as_str().unwrap().contains("net.ipv4.ip_forward = 1"), "{forwarding}");
    let on = row(&check(1, folder.path(), &["--json"]), "IPv4 forwarding");
    assert_eq!((&on["found"], on.get("fix")), (&"yes".into(), None), "{on}");
}

#[test]
fn hints_are_shell_commands_and_strict_has_an_exit_code() {
    let folder = folder();
    let plain = check(0, folder.path(), &[]);
    let text = String::from_utf8(plain.stdout).unwrap();
    assert!(plain.status.success() && text.contains("berth check --fix-hints shows"), "{text}");
    let hints = check(0, folder.path(), &["--fix-hints", "--strict"]);
    assert_eq!(hints.status.code(), Some(3), "{hints:?}");
    let text = String::from_utf8(hints.stdout).unwrap();
    let (_, commands) = text.split_once("\n\n# ").unwrap();
    let script = folder.path().join("hints.sh");
    fs::write(&script, format!("# {commands}")).unwrap();
    let parsed = Command::new("sh").arg("-n").arg(&script).output().unwrap();
    assert!(parsed.status.success(), "{parsed:?}: {commands}");
    assert!(commands.contains("echo 'net.ipv4.ip_forward = 1' >>"), "{commands}");
}

#[test]
fn the_network_of_another_runtime_can_be_moved_away_by_the_hint() {
    let folder = folder();
    let file = folder.path().join("net.d/10-containerd-net.conflist");
    fs::write(&file, "{}").unwrap();
    let found = row(&check(1, folder.path(), &["--json"]), "no network of another runtime");
    assert_eq!(found["found"], "no", "{found}");
    let fixed = Command::new("sh").args(["-ec", found["fix"].as_str().unwrap()]).output().unwrap();
    assert!(fixed.status.success(), "{fixed:?}");
    let found = row(&check(1, folder.path(), &["--json"]), "no network of another runtime");
    assert_eq!(found["found"], "yes", "{found}");
}

#[test]
fn a_firewall_that_drops_forwarded_packets_is_reported() {
    let folder = folder();
    let script = "iptables -P FORWARD DROP && exec \"$@\"";
    let output = Command::new("unshare")
        .args(["--net", "sh", "-c", script, "sh", env!("CARGO_BIN_EXE_berth"), "check", "--json", "--config"])
        .arg(folder.path().join("config.toml"))
        .output()
        .unwrap();
    let found = row(&output, "forwarding for pods");
    assert_eq!(found["found"], "no", "{found}");
    assert!(found["fix"].as_str().unwrap().starts_with("iptables -I FORWARD -i berth0"), "{found}");
}

/// In a mount namespace in which /run is empty.
#[test]
fn another_runtime_that_listens_is_reported() {
    let folder = folder();
    fs::create_dir(folder.path().join("containerd")).unwrap();
    let _listener = UnixListener::bind(folder.path().join("containerd/containerd.sock")).unwrap();
    let script = "mount --bind \"$0\" /run && exec \"$@\"";
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .arg(folder.path())
        .args([env!("CARGO_BIN_EXE_berth"), "check", "--json", "--config"])
        .arg(folder.path().join("config.toml"))
        .output()
        .unwrap();
    let found = row(&output, "no other runtime");
    assert_eq!(found["found"], "no", "{output:?}");
    assert!(found["detail"].as_str().unwrap().contains("containerd"), "{found}");
    assert_eq!(found["fix"], "systemctl disable --now containerd");
}
