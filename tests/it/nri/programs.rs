//! Plugins as programs: they use the reference library for plugins and behave as the reference plugins do. The daemon starts
//! those of the plugin folder; others connect.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Berth, PATIENCE, shell, sleeper};

/// The program with all plugins.
static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stand-ins/nriplugins.sh");
    let output = Command::new(script).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "nriplugins is not built");
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
});

/// A folder with plugins and their configurations.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("plugins")).unwrap();
        fs::create_dir(folder.path().join("conf.d")).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Adds a plugin with a configuration.
    fn add(&self, name: &str, config: &str) {
        let program = self.path("plugins").join(name);
        fs::copy(&*PROGRAM, &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(self.path("conf.d").join(format!("{name}.conf")), config).unwrap();
    }

    async fn start(&self, more: &str) -> Berth {
        let path = self.0.path().display();
        let config = format!(
            "{more}[nri]\nsocket_path = \"{path}/nri.sock\"\nplugin_path = \"{path}/plugins\"\n\
             plugin_config_path = \"{path}/conf.d\"\n"
        );
        let mut berth = Berth::start_with(&config).await;
        berth.load_image().await;
        berth
    }

    /// Ends the plugins, which would be left beside the daemon.
    async fn end_plugins(&self) {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = processes_of(&self.path("plugins"));
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < until, "{left:?} still run");
            for pid in left.into_iter().filter_map(rustix::process::Pid::from_raw) {
                // It may have ended in the meantime.
                let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Returns the events in a log, with their texts.
    fn log(&self, name: &str) -> Vec<(String, Value)> {
        let text = fs::read_to_string(self.path(name)).unwrap_or_default();
        let line = |line: &str| {
            let (event, about) = line.split_once(' ').unwrap();
            (event.to_owned(), serde_json::from_str(about).unwrap())
        };
        text.lines().map(line).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_starts_plugins_in_order_and_ends_them() {
    let folder = Folder::new();
    let log = |name: &str| format!("log: {}\n", folder.path(name).display());
    folder.add("10-logger", &log("logger.log"));
    folder.add("20-ulimit-adjuster", "");
    folder.add("90-differ", &log("differ.log"));
    let mut berth = folder.start("").await;
    let mut config = berth.pod_config("pod");
    let limits = "- type: RLIMIT_NOFILE\n  hard: 99\n  soft: 88\n";
    config.annotations.insert("ulimits.nri.containerd.io/container.c".to_owned(), limits.to_owned());
    let pod = berth.run_pod(config).await;
    let (_, output) = berth.run_to_end(&pod, shell("c", "ulimit -n; ulimit -Hn")).await;
    assert_eq!(output, "88\n99\n");
    berth.remove_pod(&pod).await;
    let events: Vec<String> = folder.log("logger.log").into_iter().map(|(event, _)| event).collect();
    let expected = [
        "Configure",
        "Synchronize",
        "RunPodSandbox",
        "CreateContainer",
        "PostCreateContainer",
        "StartContainer",
        "PostStartContainer",
        "StopContainer",
        "StopPodSandbox",
        "RemoveContainer",
        "RemovePodSandbox",
    ];
    // The container may end before the event after its start.
    let sorted = |events: &[String]| {
        let mut events = events.to_vec();
        events.sort();
        events
    };
    assert_eq!(sorted(&events), sorted(&expected.map(str::to_owned)), "{events:?}");
    // The last plugin sees the changes of those before it.
    let (_, container) =
        folder.log("differ.log").into_iter().find(|(event, _)| event == "CreateContainer").unwrap();
    assert_eq!(container["annotations"]["logger"], "10-logger");
    let limits = container["rlimits"].as_array().unwrap();
    assert!(
        limits.iter().any(|limit| limit["type"] == "RLIMIT_NOFILE" && limit["soft"] == 88),
        "{container}"
    );
    let plugins = folder.path("plugins");
    assert_eq!(processes_of(&plugins).len(), 3);
    drop(berth);
    let until = Instant::now() + PATIENCE;
    while !processes_of(&plugins).is_empty() {
        assert!(Instant::now() < until, "the plugin still runs");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(folder.log("logger.log").last().unwrap().0, "Shutdown");
}

/// Returns the processes that execute a program of a folder.
fn processes_of(folder: &Path) -> Vec<i32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let executes = |entry: &fs::DirEntry| {
        fs::read_link(entry.path().join("exe")).is_ok_and(|executable| executable.starts_with(folder))
    };
    processes.filter(executes).filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_mounts_and_hooks_of_plugins_reach_the_container() {
    let folder = Folder::new();
    let (program, done) = (folder.path("hook"), folder.path("done"));
    fs::write(&program, format!("#!/bin/sh\ncat >/dev/null; echo $1 >>{}\n", done.display())).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    folder.add("10-device-injector", "");
    folder.add("20-hook-injector", &format!("hook: {}\n", program.display()));
    fs::write(
        folder.path("vendor.json"),
        r#"{"cdiVersion": "0.6.0", "kind": "vendor.example/x",
        "devices": [{"name": "one", "containerEdits": {"env": ["CDI=one"]}}]}"#,
    )
    .unwrap();
    let mut berth = folder.start(&format!("cdi_spec_dirs = [{:?}]\n", folder.0.path())).await;
    let mut config = berth.pod_config("pod");
    for (key, value) in [
        (
            "devices.nri.io/container.c",
            "- path: /dev/nri-null\n  type: c\n  major: 1\n  minor: 3\n".to_owned(),
        ),
        (
            "mounts.nri.io/pod",
            format!(
                "- source: {}\n  destination: /injected\n  type: bind\n  options: [bind, ro]\n",
                folder.path("conf.d").display()
            ),
        ),
        ("cdi-devices.nri.io", "[\"vendor.example/x=one\"]".to_owned()),
    ] {
        config.annotations.insert(key.to_owned(), value);
    }
    let pod = berth.run_pod(config).await;
    let (_, output) = berth
        .run_to_end(&pod, shell("c", "ls -l /dev/nri-null | cut -c1; ls /injected | wc -l; echo $CDI"))
        .await;
    assert_eq!(output, "c\n2\none\n");
    folder.end_plugins().await;
    assert_eq!(berth.clean().await, Vec::<String>::new());
    let mut kinds: Vec<String> = fs::read_to_string(&done).unwrap().lines().map(str::to_owned).collect();
    kinds.sort();
    assert_eq!(kinds, ["createContainer", "createRuntime", "poststart", "poststop", "prestart"]);
}

/// A plugin that the test has started.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_plugin_is_disconnected_and_can_connect_again() {
    let folder = Folder::new();
    let mut berth = folder.start("").await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let connect = || {
        let mut command = Command::new(&*PROGRAM);
        command.args(["-name", "ulimit-adjuster", "-idx", "10", "-socket"]).arg(folder.path("nri.sock"));
        Started(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    };
    for round in 1..=2 {
        let plugin = connect();
        let until = Instant::now() + PATIENCE;
        let connected = || {
            let log = fs::read_to_string(berth.path("daemon.log")).unwrap();
            log.lines().filter(|line| line.contains("an NRI plugin has connected")).count()
        };
        while connected() < round {
            assert!(Instant::now() < until, "the plugin does not connect");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        drop(plugin);
        berth.run(&pod, sleeper(&format!("c{round}"))).await;
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

/// Runs the example of docs/nri.md.
#[tokio::test(flavor = "multi_thread")]
async fn the_example_of_the_documentation_works() {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/nri.md")).unwrap();
    let name = page.split("/opt/nri/plugins/").nth(1).unwrap().lines().next().unwrap();
    let block = page.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    let (key, value) = block.split("annotations:\n").nth(1).unwrap().split_once(": |\n").unwrap();
    let value: String =
        value.lines().map(|line| format!("{}\n", line.trim_start_matches("      "))).collect();
    let folder = Folder::new();
    folder.add(name, "");
    let mut berth = folder.start("").await;
    let mut config = berth.pod_config("pod");
    config.annotations.insert(key.trim().to_owned(), value);
    let pod = berth.run_pod(config).await;
    let (_, output) = berth.run_to_end(&pod, shell("main", "ulimit -n; ulimit -Hn")).await;
    assert_eq!(output, "1024\n4096\n");
    // The validator's table in the page is a valid configuration.
    let table = page.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let file = folder.path("config.toml");
    fs::write(&file, table).unwrap();
    let check =
        Command::new(env!("CARGO_BIN_EXE_berth")).args(["config", "check", "--config"]).arg(&file).output();
    let check = check.unwrap();
    assert!(check.status.success(), "{check:?}");
    folder.end_plugins().await;
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
