//! `berth ps`, `top`, `logs`, `events`, `diag` and `bundle`, against a daemon with pods that run, have exited or are
//! stuck. Runs as root.

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

/// Installs a network plugin that is a script.
fn install(berth: &Berth, script: &str) {
    let bin = berth.path("bin");
    fs::create_dir_all(&bin).unwrap();
    let plugin = bin.join("scripted");
    fs::write(&plugin, script).unwrap();
    fs::set_permissions(&plugin, PermissionsExt::from_mode(0o755)).unwrap();
    let conflist = r#"{"cniVersion": "1.0.0", "name": "scripted", "plugins": [{"type": "scripted"}]}"#;
    fs::write(berth.path("net.d/10-scripted.conflist"), conflist).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn diag_of_a_pod_that_waits_for_a_plugin_shows_the_plugin_and_its_errors() {
    let mut berth = Berth::start_with("").await;
    let go = berth.path("go");
    let script = format!(
        "#!/bin/sh\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\necho waiting for the datastore >&2\n\
         until [ -e {} ]; do sleep 0.1; done; echo it never came >&2; exit 1\n",
        go.display()
    );
    install(&berth, &script);
    let events = Running::start(command(&berth, "events", &["--pod", "stuck"]));
    let mut client = berth.runtime.clone();
    let request = RunPodSandboxRequest { config: Some(berth.pod_config("stuck")), ..Default::default() };
    let running = tokio::spawn(async move { client.run_pod_sandbox(request).await.map(drop) });
    until("the plugin is not shown", || {
        let output = run(&berth, "diag", &["stuck"]);
        String::from_utf8_lossy(&output.stdout).contains("waiting for the datastore")
    })
    .await;
    // The step is reported as a cause after a second.
    until("the step is not shown", || {
        output(&berth, "diag", &["default/stuck"]).contains("RunPodSandbox is at step network for")
    })
    .await;
    let page = json(&berth, "diag", &["stuck"]);
    assert_eq!((&page["kind"], &page["state"]), (&"pod being created".into(), &"creating".into()));
    assert_eq!(page["operations"][0]["step"], "network");
    assert_eq!(
        (&page["plugins"][0]["plugin"], &page["plugins"][0]["command"]),
        (&"scripted".into(), &"ADD".into())
    );
    assert_eq!(page["plugins"][0]["stderr"], "waiting for the datastore");
    let pid = &page["plugins"][0]["pid"];
    let process =
        page["processes"].as_array().unwrap().iter().find(|process| process["pid"] == *pid).unwrap();
    assert_eq!(process["of"], "plugin scripted");
    assert!(process["waitsIn"].as_str().is_some_and(|function| !function.is_empty()), "{process}");
    let id = page["id"].as_str().unwrap().to_owned();
    assert_eq!(json(&berth, "diag", &[&id[..20]])["name"], "default/stuck");
    fs::write(&go, "").unwrap();
    assert!(running.await.unwrap().is_err());
    let events = events.up_to(|line| line.contains("pod-failed"));
    let network = events.iter().find(|line| line.contains("network-failed")).unwrap();
    assert!(network.contains("it never came"), "{network}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one daemon with its pods serves all checks")]
async fn diag_shows_processes_limits_network_mounts_logs_and_exits() {
    let conflist = serde_json::json!({
        "cniVersion": "1.0.0", "name": "pods", "plugins": [
            { "type": "bridge", "bridge": "testbr0", "isGateway": true, "ipMasq": true,
              "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.77.0.0/24" }]] } },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    });
    let mut berth = Berth::start().await;
    fs::write(berth.path("net.d/10-pods.conflist"), conflist.to_string()).unwrap();
    let mut config = berth.pod_config("web");
    config.port_mappings =
        vec![PortMapping { container_port: 80, host_port: 8080, ..PortMapping::default() }];
    let pod = berth.run_pod(config).await;
    let ip = berth.pod_status(&pod).await.network.unwrap().ip;
    let volume = berth.path("volume");
    fs::create_dir(&volume).unwrap();
    let mut main = shell("main", "echo hello; exec sleep 1000");
    main.mounts = vec![Mount {
        host_path: volume.display().to_string(),
        container_path: "/data".to_owned(),
        readonly: true,
        ..Mount::default()
    }];
    main.linux.as_mut().unwrap().resources =
        Some(LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() });
    let id = berth.run(&pod, main).await;
    let failed = berth.run(&pod, shell("failed", "echo broken; exit 7")).await;
    berth.wait_exited(&failed).await;
    until("the log has no line", || output(&berth, "logs", &["main"]).contains("hello")).await;

    let text = output(&berth, "diag", &["web/main"]);
    let inside: Vec<String> =
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for expected in [
        "container default/web/main of localhost/busybox:test, attempt 0".to_owned(),
        format!("id {id}"),
        format!("pod {pod}"),
        format!("addresses {ip}"),
        "host port tcp *:8080 -> 80".to_owned(),
        format!("nftables ports4: tcp 8080 -> {ip}:80"),
        format!("nftables masquerade4: {ip}"),
        format!("volume {} -> /data (ro)", volume.display()),
    ] {
        assert!(inside.iter().any(|line| line == &expected), "{expected}: {text}");
    }
    for expected in
        ["sleep 1000", "of 64.0 MiB", "port of testbr0, forwards", "testbr0 bridge up", " hello", "keeper"]
    {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert!(!text.contains("not available"), "{text}");
    assert!(!text.contains("BLOCKED"), "{text}");
    let page = json(&berth, "diag", &[&id]);
    assert_eq!((&page["state"], page["since"].as_str().unwrap().len()), (&"running".into(), 24));

    let page = json(&berth, "diag", &["failed"]);
    assert_eq!((&page["exits"][0]["code"], &page["exits"][0]["reason"]), (&7.into(), &"Error".into()));
    assert!(page["logs"][0]["lines"][0].as_str().unwrap().ends_with(" broken"), "{page}");
    assert_eq!(page["limits"]["notAvailable"], "the container has exited");

    // A paused container is reported as the cause, on the page of its pod, too.
    let info = berth.info(&id).await;
    let cgroup = info["cgroup"].as_str().unwrap();
    let (file, frozen, thawed) = if is_v2() {
        (format!("/sys/fs/cgroup{cgroup}/cgroup.freeze"), "1", "0")
    } else {
        (format!("/sys/fs/cgroup/freezer{cgroup}/freezer.state"), "FROZEN", "THAWED")
    };
    fs::write(&file, frozen).unwrap();
    let (of_container, of_pod) = (output(&berth, "diag", &["main"]), output(&berth, "diag", &["web"]));
    fs::write(&file, thawed).unwrap();
    for page in [of_container, of_pod] {
        assert!(page.contains("the cgroup of main is frozen"), "{page}");
    }
    assert!(error(&berth, "diag", &["nothing"]).contains("pod or container nothing not found"));

    // A log on a pipe, which nobody writes to, hangs the reader.
    let log = berth.status(&failed).await.log_path;
    fs::remove_file(&log).unwrap();
    assert!(Command::new("mkfifo").arg(&log).status().unwrap().success());
    let page = json(&berth, "diag", &["failed"]);
    let reason = page["logs"][0]["lines"]["notAvailable"].as_str().unwrap();
    assert!(reason.contains("in time"), "{page}");
    fs::remove_file(&log).unwrap();

    berth.stop_pod(&pod).await;
    let page = json(&berth, "diag", &["web"]);
    assert_eq!((&page["state"], page["containers"].as_array().unwrap().len()), (&"notready".into(), 2));
    assert!(!page["since"].as_str().unwrap().is_empty(), "{page}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one daemon with its pods serves all checks")]
async fn a_bundle_has_no_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let auth = folder.path().join("auth.json");
    // `user:registry-password-1` in base64.
    fs::write(&auth, r#"{"auths": {"registry.test": {"auth": "dXNlcjpyZWdpc3RyeS1wYXNzd29yZC0x"}}}"#)
        .unwrap();
    let mut berth = Berth::start_with(&format!("auth_file = [\"{}\"]\n", auth.display())).await;
    berth.load_image().await;
    let mut config = berth.pod_config("web");
    config.annotations.insert("example.com/config".to_owned(), "annotation-secret-2".to_owned());
    let pod = berth.run_pod(config).await;
    let volume = berth.path("secret-volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("token"), "volume-secret-3").unwrap();
    let mut main = container("main", &["sh", "-c", "cat /data/token; exec sleep 1000", "argument-secret-4"]);
    let variable = |key: &str, value: &str| KeyValue { key: key.to_owned(), value: value.into() };
    main.envs = vec![variable("DB_PASSWORD", "variable-secret-5"), variable("MODE", "variable-value-6")];
    main.annotations.insert("example.com/more".to_owned(), "annotation-secret-7".to_owned());
    main.mounts = vec![Mount {
        host_path: volume.display().to_string(),
        container_path: "/data".to_owned(),
        ..Mount::default()
    }];
    let id = berth.run(&pod, main).await;
    let failing = berth.run(&pod, sleeper("other")).await;
    // The error of this pull contains the name of the image.
    let credentials = AuthConfig {
        username: "robot".to_owned(),
        password: "pull-secret-8".to_owned(),
        ..AuthConfig::default()
    };
    let image = ImageSpec { image: "127.0.0.1:1/none:1".to_owned(), ..ImageSpec::default() };
    let request = PullImageRequest { image: Some(image), auth: Some(credentials), ..Default::default() };
    berth.images.pull_image(request).await.unwrap_err();

    let file = folder.path().join("bundle.tar.gz");
    let said = output(&berth, "bundle", &[file.to_str().unwrap()]);
    assert!(said.starts_with(&file.display().to_string()), "{said}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(fs::File::open(&file).unwrap()));
    let mut files = std::collections::BTreeMap::new();
    for entry in tar.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        files.insert(path.split_once('/').unwrap().1.to_owned(), text);
    }
    let secrets = [
        "dXNlcjpyZWdpc3RyeS1wYXNzd29yZC0x",
        "registry-password-1",
        "annotation-secret-2",
        "volume-secret-3",
        "argument-secret-4",
        "variable-secret-5",
        "variable-value-6",
        "annotation-secret-7",
        "pull-secret-8",
    ];
    for (name, text) in &files {
        for secret in secrets {
            assert!(!text.contains(secret), "{secret} in {name}: {text}");
        }
    }
    let of = |name: String| files.get(&name).unwrap_or_else(|| panic!("no {name} in {:?}", files.keys()));
    for name in [
        "version.txt",
        "check.json",
        "config.json",
        "status.json",
        "operations.txt",
        "events.txt",
        "host.txt",
        "journal.txt",
    ] {
        assert!(!of(name.to_owned()).is_empty(), "{name}");
    }
    let events = of("events.txt".to_owned());
    for kind in ["pod-started", "container-started", "pull-failed"] {
        assert!(events.contains(kind), "{kind}: {events}");
    }
    assert!(of(format!("containers/{id}.json")).contains("DB_PASSWORD"), "names of variables stay");
    assert!(of(format!("pods/{pod}.json")).contains("example.com/config"));
    assert!(of(format!("diag/{id}.txt")).contains("container default/web/main"));
    assert!(of(format!("diag/{failing}.txt")).contains("logs of containers are left out"));
    assert!(
        of("config.json".to_owned()).contains("auth.json"),
        "the path of the credentials is not a secret"
    );
    assert!(files.keys().any(|name| name.starts_with("images/sha256-")), "{:?}", files.keys());
    assert!(error(&berth, "bundle", &[file.to_str().unwrap()]).contains("File exists"));

    // Without a daemon, the archive has the facts of the host.
    berth.kill();
    let file = folder.path().join("alone.tar.gz");
    output(&berth, "bundle", &[file.to_str().unwrap()]);
    berth.restart().await;
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
