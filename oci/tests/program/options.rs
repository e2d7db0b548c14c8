//! Descriptors and cgroups that a caller chooses, users and clocks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::json;

use crate::lab::{Lab, SLEEPER, succeed};

const PROGRAM: &str = env!("CARGO_BIN_EXE_berth-oci");

/// Runs the runtime with two files as descriptors 3 and 4, and no other ones.
fn with_descriptors(lab: &Lab, arguments: &[&str]) -> Output {
    const OPEN: &str = "for n in 5 6 7 8 9; do eval \"exec $n>&-\"; done
        exec 3<three 4<four; exec \"$0\" --root \"$@\"";
    for (name, text) in [("three", "text of 3\n"), ("four", "text of 4\n")] {
        fs::write(lab.path(name), text).unwrap();
    }
    let mut shell = Command::new("sh");
    shell.args(["-c", OPEN, PROGRAM]).arg(lab.path("state")).args(arguments);
    shell.current_dir(lab.folder.path()).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn a_container_gets_only_the_preserved_descriptors() {
    const LOOK: &str = "cat <&3; cat <&4 || true; ls /proc/self/fd | wc -l";
    let lab = Lab::new(LOOK);
    // ls opens the folder itself.
    let both = "text of 3\ntext of 4\n6\n";
    assert_eq!(succeed(&with_descriptors(&lab, &["run", "--preserve-fds", "2", "c1"])), both);
    let one = succeed(&with_descriptors(&lab, &["run", "--preserve-fds", "1", "c1"]));
    assert_eq!(one, "text of 3\n5\n");
    let none = with_descriptors(&lab, &["run", "--preserve-fds", "3", "c1"]);
    let text = String::from_utf8_lossy(&none.stderr);
    assert!(!none.status.success() && text.contains("descriptor 5 is not open"), "{text}");
    // A hook runs on the host and gets none of them. ls opens the folder itself.
    let mut hooked = Lab::new("cat <&3");
    let count = json!([{ "path": "/bin/sh", "args": ["sh", "-c", "ls /proc/self/fd | wc -l >descriptors"] }]);
    hooked.config["hooks"] = json!({ "createRuntime": count });
    hooked.write();
    assert_eq!(succeed(&with_descriptors(&hooked, &["run", "--preserve-fds", "1", "c1"])), "text of 3\n");
    assert_eq!(fs::read_to_string(hooked.path("descriptors")).unwrap(), "4\n");
    let sleeper = Lab::new(SLEEPER);
    sleeper.leave_running(&["run", "--detach", "c1"]);
    let output = with_descriptors(&sleeper, &["exec", "--preserve-fds", "2", "c1", "sh", "-c", LOOK]);
    assert_eq!(succeed(&output), both);
    // The command runs after this process has ended.
    let mut later = Lab::new("cat <&3 >/tmp/three; ls /proc/self/fd | wc -l >>/tmp/three");
    later.config["root"]["readonly"] = false.into();
    later.write();
    let create = "exec 3<three; exec \"$0\" --root \"$@\" >output 2>&1";
    fs::write(later.path("three"), "text of 3\n").unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", create, PROGRAM]).arg(later.path("state")).args([
        "create",
        "--preserve-fds",
        "1",
        "c1",
    ]);
    let status = shell.current_dir(later.folder.path()).stdin(Stdio::null()).status().unwrap();
    assert!(status.success(), "{}", later.output());
    succeed(&later.berth(&["start", "c1"]));
    later.until_status("c1", "stopped");
    assert_eq!(fs::read_to_string(later.path("rootfs/tmp/three")).unwrap(), "text of 3\n5\n");
}

/// The hierarchy in which processes are found, and the prefix of its cgroups in `--cgroup`.
fn hierarchy() -> (PathBuf, &'static str) {
    let freezer = Path::new("/sys/fs/cgroup/freezer");
    match freezer.exists() {
        true => (freezer.to_owned(), "freezer:"),
        false => (PathBuf::from("/sys/fs/cgroup"), ""),
    }
}

#[test]
fn an_exec_runs_in_a_cgroup_below_the_containers() {
    let lab = Lab::new(SLEEPER);
    lab.leave_running(&["run", "--detach", "c1"]);
    let (hierarchy, prefix) = hierarchy();
    let cgroup = hierarchy.join("berth-oci-test").join(lab.name());
    fs::create_dir(cgroup.join("sub")).unwrap();
    let exec = |cgroup: &str| lab.berth(&["exec", "--cgroup", cgroup, "c1", "cat", "/proc/self/cgroup"]);
    let output = succeed(&exec(&format!("{prefix}sub")));
    assert!(output.lines().any(|line| line.ends_with(":/sub")), "{output}");
    for (name, expected) in [("none", "failed to find"), ("../sub", "is not below the container's cgroup")] {
        let output = exec(&format!("{prefix}{name}"));
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(255) && text.contains(expected), "{name}: {text}");
    }
}

#[test]
fn without_a_cgroup_namespace_only_the_containers_cgroups_are_mounted() {
    let (hierarchy, prefix) = hierarchy();
    if prefix.is_empty() {
        return;
    }
    let mut lab = Lab::new(
        "cat /sys/fs/cgroup/freezer/cgroup.procs | wc -l; cat /sys/fs/cgroup/memory/memory.limit_in_bytes; touch /sys/fs/cgroup/memory/x",
    );
    let namespaces = lab.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "cgroup");
    lab.config["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20 });
    add_users(&mut lab, None);
    let output = lab.berth(&["run", "c1"]);
    // The shell, cat and wc.
    assert_eq!(String::from_utf8_lossy(&output.stdout), "3\n67108864\n", "{output:?} {hierarchy:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("Read-only file system"), "{output:?}");
}

#[test]
fn a_tmpfs_copies_only_an_empty_folder() {
    let mut lab = Lab::new("ls /tmp; touch /tmp/x && echo written");
    let mounts = lab.config["mounts"].as_array_mut().unwrap();
    mounts.push(
        json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["rw", "tmpcopyup"] }),
    );
    lab.write();
    assert_eq!(succeed(&lab.berth(&["run", "c1"])), "written\n");
    fs::write(lab.path("rootfs/tmp/file"), "").unwrap();
    lab.fail(&["run", "c2"], "tmpcopyup of /tmp, which is not empty, is not supported");
}

const MAPPING: [(&str, u32); 3] = [("containerID", 0), ("hostID", 100_000), ("size", 65_536)];

/// Adds a user namespace to the spec: a new one, or that of a path.
fn add_users(lab: &mut Lab, path: Option<String>) {
    let mapping: serde_json::Map<_, _> =
        MAPPING.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    for field in ["uidMappings", "gidMappings"] {
        lab.config["linux"][field] = json!([mapping]);
    }
    let namespaces = lab.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(match path {
        Some(path) => json!({ "type": "user", "path": path }),
        None => json!({ "type": "user" }),
    });
    lab.write();
}

#[test]
fn root_of_a_user_namespace_is_nobody_on_the_host() {
    const LOOK: &str = "id -u; cat /proc/self/uid_map; echo $$; mount -t tmpfs x /tmp && echo mounted";
    let mut lab = Lab::new(&format!("{LOOK}; {SLEEPER}"));
    for set in ["bounding", "effective", "permitted"] {
        lab.config["process"]["capabilities"][set] = json!(["CAP_SYS_ADMIN"]);
    }
    add_users(&mut lab, None);
    lab.create(&["c1"]);
    succeed(&lab.berth(&["start", "c1"]));
    lab.until(|| lab.output().contains("started"));
    let output = lab.output();
    let words: Vec<&str> = output.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "100000", "65536", "1", "mounted", "started"], "{output}");
    let pid = lab.state("c1")["pid"].to_string();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("Uid:\t100000\t100000"), "{status}");
    assert_eq!(succeed(&lab.berth(&["exec", "--user", "7", "c1", "id", "-u"])), "7\n");
    // A second container joins the namespaces of the first.
    let mut second = Lab::new("id -u; cat /proc/self/uid_map");
    let path = |file: &str| format!("/proc/{pid}/ns/{file}");
    second.config["hostname"] = serde_json::Value::Null;
    let join = |kind: &str, file: &str| json!({ "type": kind, "path": path(file) });
    second.config["linux"]["namespaces"] = json!([
        join("pid", "pid"), join("network", "net"), join("ipc", "ipc"), join("uts", "uts"),
        { "type": "mount" }, { "type": "cgroup" },
    ]);
    add_users(&mut second, Some(path("user")));
    let output = succeed(&second.berth(&["run", "c2"]));
    assert_eq!(output.split_whitespace().collect::<Vec<_>>(), ["0", "0", "100000", "65536"]);
    // A namespace of the host is joined before the user namespace, whose root could not.
    let mut host = Lab::new("id -u; ls /proc/self/ns");
    host.config["linux"]["namespaces"] = json!([
        { "type": "network", "path": "/proc/self/ns/net" }, { "type": "pid" }, { "type": "mount" },
        { "type": "ipc" }, { "type": "uts" },
    ]);
    let mounts = host.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/sys"));
    host.config["linux"]["maskedPaths"] = json!([]);
    add_users(&mut host, None);
    assert!(succeed(&host.berth(&["run", "c3"])).starts_with("0\n"));
    host.config["linux"]["uidMappings"] = json!([]);
    host.write();
    host.fail(&["run", "c4"], "requires mappings");
}

fn uptime(text: &str) -> f64 {
    text.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn a_container_has_its_own_clocks() {
    if !Path::new("/proc/self/ns/time").exists() {
        return;
    }
    const DAYS: f64 = 864_000.0;
    let mut lab = Lab::new(&format!("cat /proc/uptime; {SLEEPER}"));
    lab.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "time" }));
    lab.config["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 864_000 } });
    let hook = json!([{ "path": "/bin/sh", "args": ["sh", "-c", "cat /proc/uptime >uptime-of-hook"] }]);
    lab.config["hooks"] = json!({ "createRuntime": hook });
    lab.write();
    let host = || uptime(&fs::read_to_string("/proc/uptime").unwrap());
    let before = host();
    lab.leave_running(&["run", "--detach", "c1"]);
    lab.until(|| lab.output().contains("started"));
    assert!(uptime(&lab.output()) >= before + DAYS, "{}", lab.output());
    assert!(uptime(&succeed(&lab.berth(&["exec", "c1", "cat", "/proc/uptime"]))) >= before + DAYS);
    assert!(uptime(&fs::read_to_string(lab.path("uptime-of-hook")).unwrap()) <= host());
    let pid = lab.state("c1")["pid"].to_string();
    let mut other = Lab::new("cat /proc/uptime");
    let joined = json!({ "type": "time", "path": format!("/proc/{pid}/ns/time") });
    other.config["linux"]["namespaces"].as_array_mut().unwrap().push(joined);
    other.write();
    assert!(uptime(&succeed(&other.berth(&["run", "c2"]))) >= before + DAYS);
}
