//! The commands and their flags.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::lab::{Lab, SLEEPER, succeed};

#[test]
fn a_container_from_create_to_delete() {
    let lab = Lab::new(SLEEPER);
    lab.create(&["--pid-file", "pid", "c1"]);
    let state = lab.state("c1");
    let pid = fs::read_to_string(lab.path("pid")).unwrap();
    assert_eq!((&state["status"], state["pid"].to_string()), (&"created".into(), pid.clone()));
    assert_eq!(state["bundle"], lab.folder.path().canonicalize().unwrap().to_str().unwrap());
    assert_eq!(lab.output(), "", "the command has not run");
    lab.fail(&["create", "c1"], "container with id exists");
    succeed(&lab.berth(&["start", "c1"]));
    assert_eq!(lab.state("c1")["status"], "running");
    lab.fail(&["start", "c1"], "container c1 is running");
    lab.fail(&["delete", "c1"], "container c1 is running");
    let pids: Vec<i64> = serde_json::from_str(&succeed(&lab.berth(&["ps", "-f", "json", "c1"]))).unwrap();
    assert!(pids.contains(&pid.parse().unwrap()), "{pids:?}");
    let table = succeed(&lab.berth(&["ps", "c1"]));
    assert!(table.starts_with("UID") && table.contains("while true"), "{table}");
    let list: Value = serde_json::from_str(&succeed(&lab.berth(&["list", "-f", "json"]))).unwrap();
    assert_eq!((list[0]["id"].as_str(), list.as_array().unwrap().len()), (Some("c1"), 1));
    lab.until(|| lab.output().contains("started"));
    succeed(&lab.berth(&["kill", "c1", "TERM"]));
    lab.until_status("c1", "stopped");
    lab.fail(&["kill", "c1", "KILL"], "container not running");
    succeed(&lab.berth(&["delete", "c1"]));
    lab.fail(&["state", "c1"], "does not exist");
    succeed(&lab.berth(&["delete", "--force", "c1"]));
    for hierarchy in ["memory", "freezer", "unified", "."] {
        let cgroup = Path::new("/sys/fs/cgroup").join(hierarchy).join("berth-oci-test").join(lab.name());
        assert!(!cgroup.exists(), "{}", cgroup.display());
    }
}

#[test]
fn run_returns_the_exit_code_and_deletes_the_container() {
    let lab = Lab::new("cat; echo error >&2; id -u; exit 3");
    let mut command = lab.command(&["run", "c1"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"input\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "input\n0\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "error\n");
    lab.fail(&["state", "c1"], "does not exist");
}

#[test]
fn errors_are_in_the_log_and_leave_nothing() {
    let mut lab = Lab::new("true");
    lab.config["process"]["args"] = json!(["/no/such/program"]);
    lab.write();
    lab.create(&["c1"]);
    let output = lab.berth(&["--log", "log.json", "--log-format", "json", "start", "c1"]);
    assert!(!output.status.success());
    let log: Value = serde_json::from_str(fs::read_to_string(lab.path("log.json")).unwrap().trim()).unwrap();
    assert_eq!(log["level"], "error");
    assert!(log["msg"].as_str().unwrap().contains("No such file"), "{log}");
    succeed(&lab.berth(&["delete", "c1"]));
    lab.config["linux"]["intelRdt"] = json!({ "closID": "x" });
    lab.write();
    lab.fail(&["create", "c2"], "linux.intelRdt is not supported");
    lab.fail(&["state", "c2"], "does not exist");
    lab.fail(&["create", "../c"], "invalid container id");
    lab.fail(&["--systemd-cgroup", "create", "c2"], "--systemd-cgroup is not supported");
}

#[test]
fn exec_runs_in_the_container() {
    let lab = Lab::new(SLEEPER);
    lab.leave_running(&["run", "--detach", "c1"]);
    let output = lab.berth(&[
        "exec",
        "--env",
        "A=a",
        "--env",
        "A=b",
        "--env",
        "TERM=new",
        "--user",
        "5:6",
        "c1",
        "sh",
        "-c",
        "id -u; id -g; echo $A $TERM; env | grep -c TERM; exit 4",
    ]);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "5\n6\nb new\n1\n");
    let process = json!({ "args": ["sh", "-c", "echo $$ $0"], "cwd": "/tmp", "user": { "uid": 0, "gid": 0 },
        "env": ["PATH=/bin"] });
    fs::write(lab.path("process.json"), process.to_string()).unwrap();
    let output = succeed(&lab.berth(&["exec", "--process", "process.json", "--pid-file", "exec.pid", "c1"]));
    assert!(output.trim().ends_with(" sh"), "{output}");
    assert!(fs::read_to_string(lab.path("exec.pid")).unwrap().parse::<i32>().unwrap() > 1);
    let output = lab.berth(&["exec", "c1", "none"]);
    assert_eq!(output.status.code(), Some(255));
    assert!(String::from_utf8_lossy(&output.stderr).contains("\"none\""), "{output:?}");
    let parent = fs::read_link(format!("/proc/{}/ns/pid", lab.state("c1")["pid"])).unwrap();
    assert_ne!(parent, fs::read_link("/proc/self/ns/pid").unwrap());
}

/// Receives the master that the runtime sends to the console socket.
fn receive_terminal(listener: &UnixListener) -> fs::File {
    let (socket, _) = listener.accept().unwrap();
    let mut buffer = [0_u8; 64];
    let (_, mut descriptors) = berth_runtime::sys::socket::receive(socket.as_fd(), &mut buffer).unwrap();
    fs::File::from(descriptors.remove(0))
}

#[test]
fn a_terminal_is_sent_to_the_console_socket() {
    let mut lab = Lab::new("tty; sleep 600");
    lab.config["process"]["terminal"] = true.into();
    lab.write();
    lab.fail(&["create", "c1"], "--console-socket");
    let listener = UnixListener::bind(lab.path("console")).unwrap();
    let path = lab.path("console").display().to_string();
    lab.create(&["--console-socket", &path, "c1"]);
    let mut master = receive_terminal(&listener);
    succeed(&lab.berth(&["start", "c1"]));
    let mut text = [0_u8; 64];
    let length = master.read(&mut text).unwrap();
    assert!(String::from_utf8_lossy(&text[..length]).starts_with("/dev/pts/"), "{text:?}");
    succeed(&lab.berth(&["exec", "--tty", "--detach", "--console-socket", &path, "c1", "tty"]));
    let mut master = receive_terminal(&listener);
    let length = master.read(&mut text).unwrap();
    assert!(String::from_utf8_lossy(&text[..length]).starts_with("/dev/pts/"), "{text:?}");
    // In the foreground the runtime copies the terminal itself.
    let output = lab.berth(&["exec", "--tty", "c1", "sh", "-c", "tty; exit 5"]);
    assert_eq!(output.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("/dev/pts/"), "{output:?}");
}

#[test]
fn hooks_run_at_their_commands() {
    let mut lab = Lab::new("true");
    let script = "#!/bin/sh\ncat >>HERE/states; echo >>HERE/states; [ \"$1\" != fail ]\n";
    let program = lab.path("hook");
    fs::write(&program, script.replace("HERE", &lab.folder.path().display().to_string())).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let hook = json!([{ "path": program, "args": ["hook"], "env": ["PATH=/usr/bin:/bin"] }]);
    for kind in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
        lab.config["hooks"][kind] = hook.clone();
    }
    lab.config["hooks"]["startContainer"] =
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", "/bin/cat >/tmp/state"] }]);
    lab.config["root"]["readonly"] = false.into();
    lab.write();
    let seen = |lab: &Lab| -> Vec<String> {
        let text = fs::read_to_string(lab.path("states")).unwrap_or_default();
        let states = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        states.map(|state| state["status"].as_str().unwrap().to_owned()).collect()
    };
    lab.create(&["c1"]);
    assert_eq!(seen(&lab), ["creating"; 3]);
    succeed(&lab.berth(&["start", "c1"]));
    assert_eq!(seen(&lab).last().map(String::as_str), Some("running"));
    let inside = fs::read_to_string(lab.path("rootfs/tmp/state")).unwrap();
    assert!(inside.contains("\"status\":\"created\""), "{inside}");
    lab.until_status("c1", "stopped");
    succeed(&lab.berth(&["delete", "c1"]));
    assert_eq!(seen(&lab).last().map(String::as_str), Some("stopped"));
    let state: Value =
        serde_json::from_str(fs::read_to_string(lab.path("states")).unwrap().lines().next().unwrap())
            .unwrap();
    assert_eq!(state["id"], "c1");
    lab.config["hooks"]["createRuntime"] = json!([{ "path": program, "args": ["hook", "fail"] }]);
    lab.write();
    lab.fail(&["create", "c2"], "(createRuntime)");
    lab.fail(&["state", "c2"], "does not exist");
}

#[test]
fn limits_events_and_pause() {
    let mut lab = Lab::new(SLEEPER);
    lab.config["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20 });
    lab.config["linux"]["resources"]["pids"] = json!({ "limit": 20 });
    lab.write();
    lab.leave_running(&["run", "--detach", "c1"]);
    let stats = |lab: &Lab| -> Value {
        serde_json::from_str(&succeed(&lab.berth(&["events", "--stats", "c1"]))).unwrap()
    };
    let first = stats(&lab);
    assert_eq!((&first["type"], &first["id"]), (&"stats".into(), &"c1".into()));
    assert_eq!(first["data"]["memory"]["usage"]["limit"], 64 << 20, "{first}");
    assert!(first["data"]["pids"]["current"].as_u64().unwrap() >= 1, "{first}");
    succeed(&lab.berth(&["update", "--memory", "33554432", "c1"]));
    assert_eq!(stats(&lab)["data"]["memory"]["usage"]["limit"], 32 << 20);
    fs::write(lab.path("limits.json"), r#"{"memory": {"limit": 50331648}}"#).unwrap();
    succeed(&lab.berth(&["update", "--resources", "limits.json", "c1"]));
    assert_eq!(stats(&lab)["data"]["memory"]["usage"]["limit"], 48 << 20);
    succeed(&lab.berth(&["pause", "c1"]));
    assert_eq!(lab.state("c1")["status"], "paused");
    lab.fail(&["exec", "c1", "true"], "container c1 is paused");
    lab.fail(&["pause", "c1"], "container c1 is paused");
    succeed(&lab.berth(&["resume", "c1"]));
    assert_eq!(lab.state("c1")["status"], "running");
    succeed(&lab.berth(&["kill", "--all", "c1", "KILL"]));
    lab.until_status("c1", "stopped");
}

#[test]
fn a_paused_container_can_be_killed() {
    let lab = Lab::new(SLEEPER);
    lab.leave_running(&["run", "--detach", "c1"]);
    succeed(&lab.berth(&["pause", "c1"]));
    succeed(&lab.berth(&["kill", "c1", "KILL"]));
    lab.until_status("c1", "stopped");
}

#[test]
fn a_cgroup_of_another_container_is_rejected() {
    let lab = Lab::new(SLEEPER);
    lab.leave_running(&["run", "--detach", "c1"]);
    let mut other = Lab::new("true");
    let own = lab.config["linux"]["cgroupsPath"].clone();
    for path in [own, "/berth-oci-test".into()] {
        other.config["linux"]["cgroupsPath"] = path;
        other.write();
        other.fail(&["create", "c2"], "has processes");
        other.fail(&["delete", "c2"], "does not exist");
        assert_eq!(lab.state("c1")["status"], "running");
    }
}

#[test]
fn namespaces_of_another_container_are_joined() {
    let lab = Lab::new(SLEEPER);
    lab.leave_running(&["run", "--detach", "first"]);
    let pid = lab.state("first")["pid"].to_string();
    let mut second = Lab::new("echo $(ls -d /proc/[0-9]*); sleep 600");
    second.config["hostname"] = Value::Null;
    let path = |kind: &str, file: &str| json!({ "type": kind, "path": format!("/proc/{pid}/ns/{file}") });
    second.config["linux"]["namespaces"] = json!([path("pid", "pid"), path("network", "net"), path("ipc", "ipc"), path("uts", "uts"), { "type": "mount" }]);
    second.write();
    second.create(&["second"]);
    succeed(&second.berth(&["start", "second"]));
    let other = second.state("second")["pid"].to_string();
    let link = |pid: &str, file: &str| fs::read_link(format!("/proc/{pid}/ns/{file}")).unwrap();
    for file in ["pid", "net", "ipc", "uts"] {
        assert_eq!(link(&pid, file), link(&other, file), "{file}");
    }
    assert_ne!(link(&pid, "mnt"), link(&other, "mnt"));
}

#[test]
fn features_and_version() {
    let lab = Lab::new("true");
    let features: Value = serde_json::from_str(&succeed(&lab.berth(&["features"]))).unwrap();
    assert_eq!(features["hooks"].as_array().unwrap().len(), 6);
    assert!(succeed(&lab.berth(&["--version"])).contains("spec: 1."));
    lab.fail(&["spec"], "config.json");
}
