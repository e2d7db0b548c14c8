//! OCI hooks of all kinds, from hook folders and CDI files. Runs as root.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::{Berth, PATIENCE, shell, sleeper};
use berth_proto::v1::*;
use serde_json::{Value, json};

/// The hooks of one test: a folder with hook files, a program, and what it has recorded.
struct HookHost {
    berth: Berth,
    folder: tempfile::TempDir,
}

/// The program of all hooks. It appends its first argument to `order` and writes its standard input to a file.
const PROGRAM: &str = r#"#!/bin/sh
here=HERE
cat >"$here/$1.json"
echo "$1" >>"$here/order"
case $2 in
fail) echo "no such $1" >&2; exit 3 ;;
hang) sleep 600 ;;
slow) touch "$here/slow"; sleep 2; echo "$1 done" >>"$here/order" ;;
nsenter) nsenter -t "$(sed 's/.*"pid":\([0-9]*\).*/\1/' "$here/$1.json")" -m ls "$(sed 's/.*"bundle":"\([^"]*\)".*/\1/' "$here/$1.json")/rootfs/etc" >"$here/$1.seen" ;;
esac
"#;

impl HookHost {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let hooks = folder.path().join("hooks.d");
        fs::create_dir(&hooks).unwrap();
        let program = folder.path().join("program");
        fs::write(&program, PROGRAM.replace("HERE", &folder.path().display().to_string())).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let mut berth =
            Berth::start_with(&format!("hooks_dirs = [{hooks:?}]\ncdi_spec_dirs = [{:?}]\n", folder.path()))
                .await;
        berth.load_image().await;
        Self { berth, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Adds a hook of a kind for containers with the annotation `hooks`.
    fn add(&self, file: &str, kind: &str, action: &str) {
        self.add_with(file, kind, action, json!(5));
    }

    fn add_with(&self, file: &str, kind: &str, action: &str, timeout: Value) {
        let hook = json!({
            "version": "1.0.0",
            "hook": {
                "path": self.path("program"),
                "args": ["hook", kind, action],
                "env": ["PATH=/usr/bin:/bin:/usr/sbin:/sbin"],
                "timeout": timeout,
            },
            "when": { "annotations": { "^hooks$": "^yes$" } },
            "stages": [kind],
        });
        fs::write(self.path("hooks.d").join(file), hook.to_string()).unwrap();
    }

    fn order(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("order")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    async fn until_order(&self, expected: &[&str]) {
        let until = Instant::now() + PATIENCE;
        while self.order() != expected {
            assert!(Instant::now() < until, "{:?} instead of {expected:?}", self.order());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn state(&self, kind: &str) -> Value {
        serde_json::from_str(&fs::read_to_string(self.path(&format!("{kind}.json"))).unwrap()).unwrap()
    }

    async fn status(&mut self, id: &str) -> ContainerStatus {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        self.berth.runtime.container_status(request).await.unwrap().into_inner().status.unwrap()
    }

    async fn remove(&mut self, id: &str) {
        let request = RemoveContainerRequest { container_id: id.to_owned() };
        self.berth.runtime.remove_container(request).await.unwrap();
    }

    async fn stop(&mut self, id: &str) {
        let request = StopContainerRequest { container_id: id.to_owned(), timeout: 10 };
        self.berth.runtime.stop_container(request).await.unwrap();
    }
}

/// Returns the config with the annotation that selects the hooks.
fn hooked(mut config: ContainerConfig) -> ContainerConfig {
    config.annotations.insert("hooks".to_owned(), "yes".to_owned());
    config
}

/// The kinds that run on the host.
const HOST: [&str; 4] = ["prestart", "createRuntime", "poststart", "poststop"];

#[tokio::test(flavor = "multi_thread")]
async fn hooks_of_all_kinds_run_in_order_with_their_state() {
    let mut lab = HookHost::start().await;
    for kind in HOST {
        lab.add(&format!("{kind}.json"), kind, if kind == "createRuntime" { "nsenter" } else { "" });
    }
    lab.add("createContainer.json", "createContainer", "");
    // This one runs in the container: it is a program of the image.
    let hook = json!({
        "version": "1.0.0",
        "hook": { "path": "/bin/sh", "args": ["sh", "-c", "cat >/tmp/state; id -u >>/tmp/state"] },
        "when": { "annotations": { "hooks": "yes" }, "commands": ["^sh$"] },
        "stages": ["startContainer"],
    });
    fs::write(lab.path("hooks.d/start.json"), hook.to_string()).unwrap();
    let pod = lab.berth.run_pod(lab.berth.pod_config("kinds")).await;
    let config = hooked(shell("c", "cat /tmp/state; trap 'exit 0' TERM; while true; do sleep 0.1; done"));
    let id = lab.berth.try_create(&pod, config).await.unwrap();
    assert_eq!(lab.order(), ["prestart", "createRuntime", "createContainer"]);
    let info = lab.berth.info(&id).await;
    let bundle = lab.state("prestart")["bundle"].as_str().unwrap().to_owned();
    let saved: Value =
        serde_json::from_str(&fs::read_to_string(Path::new(&bundle).join("config.json")).unwrap()).unwrap();
    assert_eq!(saved["hooks"]["poststop"].as_array().unwrap().len(), 1);
    for kind in ["prestart", "createRuntime"] {
        let state = lab.state(kind);
        assert_eq!(state["status"], "creating", "{kind}");
        assert_eq!(state["id"], id.as_str());
        assert_eq!(state["pid"], info["pid"], "{kind}: the pid of the host");
        assert_eq!(state["annotations"]["io.kubernetes.cri.container-type"], "container");
        assert_eq!(state["ociVersion"], saved["ociVersion"]);
    }
    let seen = fs::read_to_string(lab.path("createRuntime.seen")).unwrap();
    assert!(seen.lines().any(|name| name == "passwd"), "the root filesystem is in the namespace: {seen}");
    lab.berth.try_start_container(&id).await.unwrap();
    assert_eq!(lab.order().last().map(String::as_str), Some("poststart"));
    assert_eq!(lab.state("poststart")["status"], "running");
    assert_eq!(lab.state("poststart")["pid"], info["pid"]);
    lab.stop(&id).await;
    lab.until_order(&["prestart", "createRuntime", "createContainer", "poststart", "poststop"]).await;
    let state = lab.state("poststop");
    assert_eq!((state["status"].as_str(), state["id"].as_str()), (Some("stopped"), Some(id.as_str())));
    let log = fs::read_to_string(lab.berth.path("logs/kinds/c.log")).unwrap();
    let text = crate::support::text_of(&log);
    let inside: Value = serde_json::Deserializer::from_str(&text).into_iter().next().unwrap().unwrap();
    assert_eq!((inside["status"].as_str(), inside["pid"].as_i64()), (Some("created"), Some(1)), "{text}");
    lab.remove(&id).await;
    assert_eq!(lab.order().iter().filter(|kind| *kind == "poststop").count(), 1);
    // A container that no condition matches has no hooks.
    let other = lab.berth.try_create(&pod, sleeper("other")).await.unwrap();
    lab.remove(&other).await;
    assert_eq!(lab.order().len(), 5);
    assert_eq!(lab.berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_or_hanging_hook_stops_the_start() {
    let mut lab = HookHost::start().await;
    lab.add("90-poststop.json", "poststop", "");
    let pod = lab.berth.run_pod(lab.berth.pod_config("fail")).await;
    for kind in ["prestart", "createRuntime", "createContainer"] {
        for (action, timeout, expected) in
            [("fail", 5, "exit status: 3: no such"), ("hang", 1, "ended after 1 s")]
        {
            drop(fs::remove_file(lab.path("order")));
            lab.add_with("50.json", kind, action, json!(timeout));
            let error = lab.berth.try_create(&pod, hooked(sleeper("c"))).await.unwrap_err();
            let text = error.message();
            assert!(text.contains(expected) && text.contains(&format!("program ({kind})")), "{text}");
            // The hooks that undo run after a failure, too: CreateContainer has waited for them.
            assert_eq!(lab.order(), [kind, "poststop"], "{action}");
        }
    }
    for (action, timeout, expected) in
        [("fail", 5, "exit status: 3: no such"), ("hang", 1, "ended after 1 s")]
    {
        drop(fs::remove_file(lab.path("order")));
        lab.add_with("50.json", "poststart", action, json!(timeout));
        let id = lab.berth.try_create(&pod, hooked(sleeper("c"))).await.unwrap();
        let error = lab.berth.try_start_container(&id).await.unwrap_err();
        assert!(error.message().contains(expected), "{error}");
        assert!(error.message().contains("poststart hook "), "{error}");
        lab.until_order(&["poststart", "poststop"]).await;
        let status = lab.status(&id).await;
        assert_eq!(status.state(), ContainerState::ContainerExited);
        assert_eq!(status.reason, "StartError", "{status:?}");
        lab.remove(&id).await;
    }
    assert_eq!(lab.berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_hook_in_the_container_can_fail_and_a_short_container_waits_for_its_hooks() {
    let mut lab = HookHost::start().await;
    let pod = lab.berth.run_pod(lab.berth.pod_config("start")).await;
    let hook = json!({
        "version": "1.0.0",
        "hook": { "path": "/bin/sh", "args": ["sh", "-c", "echo no start >&2; exit 4"] },
        "when": { "annotations": { "hooks": "yes" } },
        "stages": ["startContainer"],
    });
    fs::write(lab.path("hooks.d/start.json"), hook.to_string()).unwrap();
    let id = lab.berth.try_create(&pod, hooked(sleeper("c"))).await.unwrap();
    let error = lab.berth.try_start_container(&id).await.unwrap_err();
    assert!(
        error.message().contains("startContainer hook /bin/sh failed: exit status: 4: no start"),
        "{error}"
    );
    lab.remove(&id).await;
    fs::remove_file(lab.path("hooks.d/start.json")).unwrap();
    lab.add("slow.json", "poststart", "slow");
    let id = lab.berth.try_create(&pod, hooked(shell("short", "exit 7"))).await.unwrap();
    lab.berth.try_start_container(&id).await.unwrap();
    lab.until_order(&["poststart", "poststart done"]).await;
    let until = Instant::now() + PATIENCE;
    while lab.status(&id).await.state() != ContainerState::ContainerExited {
        assert!(Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(lab.status(&id).await.exit_code, 7);
    lab.remove(&id).await;
    assert_eq!(lab.berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn poststop_hooks_run_once_while_the_daemon_is_dead() {
    let mut lab = HookHost::start().await;
    lab.add("10.json", "poststop", "slow");
    lab.add("20.json", "poststop", "fail");
    let pod = lab.berth.run_pod(lab.berth.pod_config("killed")).await;
    let config = hooked(shell("c", "while [ ! -e /tmp/go ]; do sleep 0.05; done"));
    let id = lab.berth.try_create(&pod, config).await.unwrap();
    lab.berth.try_start_container(&id).await.unwrap();
    let pid = lab.berth.info(&id).await["pid"].as_i64().unwrap();
    lab.berth.kill();
    fs::write(format!("/proc/{pid}/root/tmp/go"), "").unwrap();
    let until = Instant::now() + PATIENCE;
    while !lab.path("slow").exists() {
        assert!(Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The next daemon starts, and is killed, while the hooks run.
    lab.berth.restart().await;
    lab.berth.restart().await;
    lab.until_order(&["poststop", "poststop done", "poststop"]).await;
    let until = Instant::now() + PATIENCE;
    while !lab.status(&id).await.message.contains("poststop hook") {
        assert!(Instant::now() < until, "{:?}", lab.status(&id).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let status = lab.status(&id).await;
    assert!(status.message.ends_with("failed: exit status: 3: no such poststop"), "{status:?}");
    assert_eq!(status.exit_code, 0);
    lab.remove(&id).await;
    assert_eq!(lab.order().len(), 3);
    assert_eq!(lab.berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_waits_for_the_poststop_hooks() {
    let mut lab = HookHost::start().await;
    lab.add("10.json", "poststop", "slow");
    let pod = lab.berth.run_pod(lab.berth.pod_config("wait")).await;
    for started in [true, false] {
        drop(fs::remove_file(lab.path("order")));
        let id = lab.berth.try_create(&pod, hooked(sleeper("c"))).await.unwrap();
        if started {
            lab.berth.try_start_container(&id).await.unwrap();
        }
        lab.remove(&id).await;
        assert_eq!(lab.order(), ["poststop", "poststop done"], "started: {started}");
    }
    assert_eq!(lab.berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_does_not_wait_for_a_poststart_hook_that_hangs() {
    let mut lab = HookHost::start().await;
    lab.add_with("10.json", "poststart", "hang", Value::Null);
    lab.add("20.json", "poststop", "");
    let pod = lab.berth.run_pod(lab.berth.pod_config("hang")).await;
    let id = lab.berth.try_create(&pod, hooked(sleeper("c"))).await.unwrap();
    let mut client = lab.berth.runtime.clone();
    let request = StartContainerRequest { container_id: id.clone() };
    let start = tokio::spawn(async move { client.start_container(request).await });
    lab.until_order(&["poststart"]).await;
    tokio::time::timeout(PATIENCE, lab.remove(&id)).await.expect("the removal waits for the hook");
    assert_eq!(lab.order(), ["poststart", "poststop"]);
    // The command ran before it was removed, so the start can succeed or fail. It must not hang.
    let _started_or_not = tokio::time::timeout(PATIENCE, start).await.expect("the start hangs").unwrap();
    assert_eq!(lab.berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_runs_the_poststop_hooks_of_a_killed_keeper() {
    let mut lab = HookHost::start().await;
    lab.add("10.json", "poststop", "");
    let pod = lab.berth.run_pod(lab.berth.pod_config("keeper")).await;
    let id = lab.berth.try_create(&pod, hooked(sleeper("c"))).await.unwrap();
    lab.berth.try_start_container(&id).await.unwrap();
    let pid = lab.berth.info(&id).await["pid"].as_i64().unwrap();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let keeper: i32 = stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let keeper = rustix::process::Pid::from_raw(keeper).unwrap();
    rustix::process::kill_process(keeper, rustix::process::Signal::KILL).unwrap();
    lab.until_order(&["poststop"]).await;
    lab.remove(&id).await;
    assert_eq!(lab.order(), ["poststop"]);
    assert_eq!(lab.berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn cdi_files_add_hooks_of_any_kind() {
    let mut lab = HookHost::start().await;
    let program = lab.path("program").display().to_string();
    let hook = |kind: &str| json!({ "hookName": kind, "path": program, "args": ["hook", kind], "env": ["PATH=/usr/bin:/bin"] });
    let file = json!({
        "cdiVersion": "0.6.0",
        "kind": "vendor.example/gpu",
        "devices": [{ "name": "one", "containerEdits": { "hooks": HOST.map(hook) } }],
    });
    fs::write(lab.path("vendor.json"), file.to_string()).unwrap();
    let pod = lab.berth.run_pod(lab.berth.pod_config("cdi")).await;
    let mut config = sleeper("c");
    config.cdi_devices = vec![CdiDevice { name: "vendor.example/gpu=one".to_owned() }];
    let id = lab.berth.try_create(&pod, config).await.unwrap();
    lab.berth.try_start_container(&id).await.unwrap();
    lab.remove(&id).await;
    assert_eq!(lab.order(), HOST);
    assert_eq!(lab.berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_of_the_documentation_works() {
    let mut lab = HookHost::start().await;
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/hooks.md")).unwrap();
    let mut blocks = page.split("```json\n").skip(1).map(|block| block.split("```").next().unwrap());
    let ended = lab.path("ended.json");
    let example = blocks.next().unwrap().replace("/tmp/ended.json", &ended.display().to_string());
    fs::write(lab.path("hooks.d/50-tell.json"), example).unwrap();
    let documented: Value = serde_json::from_str(blocks.next().unwrap()).unwrap();
    let pod = lab.berth.run_pod(lab.berth.pod_config("docs")).await;
    for (name, bind) in [("without", false), ("with", true)] {
        let mut config = shell(name, "true");
        if bind {
            let (host_path, container_path) = ("/etc".to_owned(), "/host".to_owned());
            config.mounts = vec![Mount { host_path, container_path, readonly: true, ..Mount::default() }];
        }
        let id = lab.berth.try_create(&pod, config).await.unwrap();
        lab.berth.try_start_container(&id).await.unwrap();
        lab.remove(&id).await;
        assert_eq!(ended.exists(), bind);
    }
    let state: Value = serde_json::from_str(&fs::read_to_string(&ended).unwrap()).unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&state), keys(&documented));
    for key in ["pid", "status", "ociVersion"] {
        assert_eq!(state[key], documented[key], "{key}");
    }
    assert_eq!(lab.berth.clean().await, Vec::<String>::new());
}
