//! `berth ps`, `top`, `logs`, `events`, `diag` and `bundle`, against a daemon with pods that run, have exited or are
//! stuck. Runs as root.

mod bundle;
mod diag;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::support::registry::Registry;
use crate::support::{Berth, PATIENCE, container, is_v2, shell, sleeper};
use berth_proto::v1::*;
use serde_json::Value;

pub(crate) fn command(berth: &Berth, name: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
    command.arg(name).arg("--config").arg(berth.path("config.toml")).args(arguments).stdin(Stdio::null());
    command
}

fn run(berth: &Berth, name: &str, arguments: &[&str]) -> Output {
    command(berth, name, arguments).output().unwrap()
}

/// Returns the output of a command that must succeed.
pub(crate) fn output(berth: &Berth, name: &str, arguments: &[&str]) -> String {
    let output = run(berth, name, arguments);
    assert!(output.status.success(), "{name} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn json(berth: &Berth, name: &str, arguments: &[&str]) -> Value {
    let arguments = [arguments, &["--output", "json"]].concat();
    serde_json::from_str(&output(berth, name, &arguments)).unwrap()
}

fn error(berth: &Berth, name: &str, arguments: &[&str]) -> String {
    let output = run(berth, name, arguments);
    assert!(!output.status.success(), "{name} {arguments:?} must fail");
    String::from_utf8(output.stderr).unwrap()
}

pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A command that runs until it is dropped, and its lines.
pub(crate) struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { child, lines }
    }

    pub(crate) fn next(&self) -> String {
        self.lines.recv_timeout(PATIENCE).unwrap()
    }

    /// Returns the lines up to the first that fits.
    pub(crate) fn up_to(&self, fits: impl Fn(&str) -> bool) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            lines.push(self.next());
            if fits(lines.last().unwrap()) {
                return lines;
            }
        }
    }

    /// Waits until the command ends by itself, and returns its remaining lines.
    fn rest(mut self) -> Vec<String> {
        let lines = self.lines.iter().collect();
        assert!(self.child.wait().unwrap().success());
        lines
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ps_and_top_list_pods_and_containers() {
    let mut berth = Berth::start().await;
    let web = berth.run_pod(berth.pod_config("web")).await;
    let old = berth.run_pod(berth.pod_config("old")).await;
    let busy = berth.run(&web, shell("busy", "while :; do :; done")).await;
    let done = berth.run(&web, shell("done", "exit 3")).await;
    berth.wait_exited(&done).await;
    berth.stop_pod(&old).await;

    let names = |arguments: &[&str]| -> Vec<String> {
        let rows = json(&berth, "ps", arguments);
        let name = |row: &Value| {
            let of = |key: &str| row[key].as_str().unwrap_or("-").to_owned();
            format!("{}/{} {}", of("pod"), of("container"), of("state"))
        };
        rows.as_array().unwrap().iter().map(name).collect()
    };
    assert_eq!(names(&[]), ["web/- ready", "web/busy running"]);
    assert_eq!(names(&["-a"]), ["old/- notready", "web/- ready", "web/busy running", "web/done exited"]);
    assert_eq!(names(&["--state", "exited"]), ["web/- ready", "web/done exited"]);
    assert!(names(&["--namespace", "other"]).is_empty());
    let text = output(&berth, "ps", &[]);
    let line = text.lines().find(|line| line.contains("busy")).unwrap();
    assert!(line.starts_with("default    web") && line.contains(&busy[..13]), "{text}");

    // A busy container uses about one core; on a loaded machine less.
    let rows = json(&berth, "top", &["--once"]);
    let row = rows.as_array().unwrap().iter().find(|row| row["container"] == "busy").unwrap();
    assert!(row["cpuMillicores"].as_u64().unwrap() >= 20, "{rows}");
    assert!(row["memoryWorkingSetBytes"].as_u64().unwrap() > 0, "{rows}");
    assert!(
        rows.as_array().unwrap().iter().all(|row| row["pod"] == "web"),
        "a stopped pod uses nothing: {rows}"
    );
    // Without a terminal there is one table.
    let text = output(&berth, "top", &["--pods"]);
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(!text.contains('\u{1b}'));
    berth.stop_container(&busy, 0).await;
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_join_parts_follow_rotation_and_show_earlier_attempts() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    // The keeper splits long lines.
    let long = "x".repeat(40_000);
    let first =
        berth.run(&pod, shell("main", &format!("echo {long}; echo error >&2; echo last; exit 1"))).await;
    berth.wait_exited(&first).await;
    let log = berth.status(&first).await.log_path;
    assert!(fs::read_to_string(&log).unwrap().contains(" stdout P "), "the log must have a part of a line");
    let mut lines: Vec<String> = output(&berth, "logs", &["pod"]).lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["error", "last", &long]);
    let tail = output(&berth, "logs", &["pod", "--tail", "2"]);
    assert_eq!(tail.lines().count(), 2, "{tail}");
    assert_eq!(output(&berth, "logs", &["pod/main", "--since", "0s"]), "");
    let stamped = output(&berth, "logs", &[&first[..12], "--timestamps", "--since", "10m"]);
    assert!(stamped.lines().all(|line| line.starts_with("20") && line.contains("Z ")), "{stamped}");

    let script = "echo one; until [ -e /tmp/go ]; do sleep 0.05; done; echo two; \
                  until [ -e /tmp/end ]; do sleep 0.05; done; printf unfinished";
    let mut config = shell("main", script);
    config.metadata.as_mut().unwrap().attempt = 1;
    config.log_path = "main-1.log".to_owned();
    let second = berth.run(&pod, config).await;
    let previous = output(&berth, "logs", &["default/pod/main", "-p"]);
    assert!(previous.contains("error") && !previous.contains("one"), "{previous}");
    let following = Running::start(command(&berth, "logs", &["pod", "-f"]));
    assert_eq!(following.next(), "one");
    // The kubelet rotates a log like this.
    let log = berth.status(&second).await.log_path;
    fs::rename(&log, format!("{log}.old")).unwrap();
    let request = ReopenContainerLogRequest { container_id: second.clone() };
    berth.runtime.reopen_container_log(request).await.unwrap();
    berth.sh(&second, "touch /tmp/go").await;
    assert_eq!(following.next(), "two");
    berth.sh(&second, "touch /tmp/end").await;
    assert_eq!(following.rest(), ["unfinished"], "it ends with the container");

    let _other = berth.run(&pod, shell("other", "exit 0")).await;
    assert!(error(&berth, "logs", &["pod"]).contains("select one of main, other with --container"));
    assert!(
        error(&berth, "logs", &["other", "-p"]).contains("previous attempt of container other not found")
    );
    assert!(error(&berth, "logs", &["nothing"]).contains("pod or container nothing not found"));
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn events_show_exits_oom_kills_and_pulls() {
    let mut berth = Berth::start().await;
    let registry = Registry::start(berth.host_process());
    let events = Running::start(command(&berth, "events", &["--output", "json"]));
    let only = Running::start(command(&berth, "events", &["--kind", "oom-killed,pull-failed"]));
    // A subscription has no answer: the first event shows that it has begun.
    let mut number = 0;
    let seen = |running: &Running| running.lines.recv_timeout(Duration::from_millis(100)).ok();
    let pull = async |berth: &mut Berth, image: String| {
        let image = Some(ImageSpec { image, ..ImageSpec::default() });
        berth.images.pull_image(PullImageRequest { image, ..PullImageRequest::default() }).await
    };
    let (mut both, until) = ((false, false), Instant::now() + PATIENCE);
    while both != (true, true) {
        assert!(Instant::now() < until, "no event");
        number += 1;
        let image = format!("{}/none:{number}", registry.address);
        pull(&mut berth, image).await.unwrap_err();
        both.0 |= seen(&events).is_some();
        both.1 |= seen(&only).is_some_and(|line| line.contains("pull-failed") && line.contains("none:"));
    }

    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let short = berth.run(&pod, shell("short", "exit 4")).await;
    berth.wait_exited(&short).await;
    let mut greedy = shell("greedy", "exec tail /dev/zero");
    greedy.linux.as_mut().unwrap().resources =
        Some(LinuxContainerResources { memory_limit_in_bytes: 16 << 20, ..Default::default() });
    let greedy = berth.run(&pod, greedy).await;
    berth.wait_exited(&greedy).await;
    berth.remove_pod(&pod).await;

    let lines = events.up_to(|line| line.contains("\"pod-deleted\""));
    let events: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |id: &str| -> Vec<&str> {
        let own = events.iter().filter(|event| event["containerId"] == id);
        own.map(|event| event["kind"].as_str().unwrap()).collect()
    };
    assert_eq!(
        of(&short),
        ["container-created", "container-started", "container-exited", "container-deleted"],
        "{lines:#?}"
    );
    assert_eq!(
        of(&greedy),
        ["container-created", "container-started", "oom-killed", "container-exited", "container-deleted"]
    );
    let exit = events
        .iter()
        .find(|event| event["containerId"] == short.as_str() && event["kind"] == "container-exited");
    let exit = exit.unwrap();
    assert_eq!(
        (&exit["exitCode"], &exit["pod"], &exit["namespace"]),
        (&4.into(), &"pod".into(), &"default".into())
    );
    let pods: Vec<&str> = events
        .iter()
        .filter(|event| event["podId"] == pod.as_str() && event.get("containerId").is_none())
        .map(|event| event["kind"].as_str().unwrap())
        .collect();
    assert_eq!(pods, ["pod-created", "pod-started", "pod-stopped", "pod-deleted"]);
    let oom = only.up_to(|line| line.contains("oom-killed"));
    assert!(oom.last().unwrap().contains("default/pod/greedy"), "{oom:?}");
    assert!(oom.iter().all(|line| line.contains("oom-killed") || line.contains("pull-failed")), "{oom:?}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
