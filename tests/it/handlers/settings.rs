//! The configuration of handlers, what their runtimes support, annotations, limits and statistics.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use berth_proto::v1::*;

use super::{RUNTIMES, handlers, run_pod, start, start_with};
use crate::support::streams::tools;
use crate::support::{is_v2, shell, sleeper};

const MIB: i64 = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn the_status_lists_the_features_of_each_runtime() {
    let mut berth = start().await;
    let answer = berth.runtime.status(StatusRequest::default()).await.unwrap().into_inner();
    let names: Vec<_> = answer.runtime_handlers.iter().map(|handler| handler.name.as_str()).collect();
    assert_eq!(names, ["", "berth", "crun", "runc"]);
    let features = |name: &str| {
        let mut all = answer.runtime_handlers.iter();
        all.find(|handler| handler.name == name).unwrap().features.unwrap()
    };
    assert!(features("").recursive_read_only_mounts && features("runc").recursive_read_only_mounts);
    let asked = Command::new("crun").arg("features").output().unwrap();
    let has = String::from_utf8_lossy(&asked.stdout).contains("\"rro\"");
    assert_eq!(features("crun").recursive_read_only_mounts, has);
    let mut config = berth.pod_config("unknown");
    config.metadata.as_mut().unwrap().name = "unknown".to_owned();
    let request = RunPodSandboxRequest { config: Some(config), runtime_handler: "kata".to_owned() };
    let error = berth.runtime.run_pod_sandbox(request).await.unwrap_err();
    assert!(error.message().contains("no runtime handler \"kata\" is configured"), "{error}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_allowed_annotations_reach_the_runtime() {
    let more = format!("{}annotations = [\"io.example.*\"]\n", handlers());
    let mut berth = start_with(&more).await;
    for (handler, passed) in [("runc", false), ("crun", true)] {
        let mut config = berth.pod_config(handler);
        let pairs = [("io.example.key", "value"), ("io.other.key", "value")];
        config.annotations = pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler: handler.to_owned() };
        let pod = berth.runtime.run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id;
        let id = berth.try_create(&pod, sleeper("c")).await.unwrap();
        let spec = fs::read(berth.path(&format!("root/containers/{id}/bundle/config.json"))).unwrap();
        let spec: serde_json::Value = serde_json::from_slice(&spec).unwrap();
        let annotations: HashMap<String, String> =
            serde_json::from_value(spec["annotations"].clone()).unwrap();
        assert_eq!(annotations.contains_key("io.example.key"), passed, "{annotations:?}");
        assert!(!annotations.contains_key("io.other.key"));
        assert_eq!(annotations["io.kubernetes.cri.sandbox-id"], pod);
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_statistics_and_out_of_memory_are_those_of_the_cgroup() {
    let mut berth = start().await;
    for (handler, _) in RUNTIMES {
        let pod = run_pod(&mut berth, handler, handler).await;
        let mut config = sleeper("limited");
        let resources = LinuxContainerResources { memory_limit_in_bytes: 64 * MIB, ..Default::default() };
        config.linux.as_mut().unwrap().resources = Some(resources.clone());
        let id = berth.run(&pod, config).await;
        let file =
            if is_v2() { "/sys/fs/cgroup/memory.max" } else { "/sys/fs/cgroup/memory/memory.limit_in_bytes" };
        assert_eq!(berth.sh(&id, &format!("cat {file}")).await, (64 * MIB).to_string(), "{handler}");
        let linux = LinuxContainerResources { memory_limit_in_bytes: 32 * MIB, ..Default::default() };
        let request = UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(linux),
            ..Default::default()
        };
        berth.runtime.update_container_resources(request).await.unwrap();
        assert_eq!(berth.sh(&id, &format!("cat {file}")).await, (32 * MIB).to_string(), "{handler}");
        let request = ContainerStatsRequest { container_id: id.clone() };
        let stats = berth.runtime.container_stats(request).await.unwrap().into_inner().stats.unwrap();
        assert!(stats.memory.unwrap().working_set_bytes.unwrap().value > 0, "{handler}");

        let mut config = shell("greedy", "exec tail /dev/zero");
        config.linux.as_mut().unwrap().resources = Some(resources);
        let greedy = berth.run(&pod, config).await;
        let status = berth.wait_exited(&greedy).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{handler}");
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

/// The runtime runs the hooks, each once, with its own state.
#[tokio::test(flavor = "multi_thread")]
async fn the_runtime_runs_the_hooks() {
    let folder = tempfile::tempdir().unwrap();
    let (program, hooks) = (folder.path().join("program"), folder.path().join("hooks.d"));
    let script = format!(
        "#!/bin/sh\necho \"$1 $(sed 's/.*\"bundle\":\"\\([^\"]*\\)\".*/\\1/')\" >>{}/order\n",
        folder.path().display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(&hooks).unwrap();
    let stages = ["createRuntime", "poststart", "poststop"];
    for stage in stages {
        let hook = serde_json::json!({
            "version": "1.0.0",
            "hook": { "path": program, "args": ["hook", stage], "env": ["PATH=/usr/bin:/bin"] },
            "when": { "always": true },
            "stages": [stage],
        });
        fs::write(hooks.join(format!("{stage}.json")), hook.to_string()).unwrap();
    }
    let mut berth = start_with(&format!("hooks_dirs = [{hooks:?}]\n{}", handlers())).await;
    for (handler, _) in RUNTIMES {
        let pod = run_pod(&mut berth, handler, handler).await;
        let id = berth.run(&pod, sleeper("c")).await;
        berth.stop_container(&id, 0).await;
        berth.remove_container(&id).await;
        let bundle = berth.path(&format!("root/containers/{id}/bundle"));
        let expected: String = stages.iter().map(|stage| format!("{stage} {}\n", bundle.display())).collect();
        assert_eq!(fs::read_to_string(folder.path().join("order")).unwrap(), expected, "{handler}");
        fs::remove_file(folder.path().join("order")).unwrap();
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

/// Runs the commands of docs/handlers.md with its configuration.
#[tokio::test(flavor = "multi_thread")]
async fn the_example_of_the_documentation_works() {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/handlers.md")).unwrap();
    let block = |kind: &str| page.split(&format!("```{kind}\n")).nth(1).unwrap().split("```").next().unwrap();
    let mut berth = start_with(block("toml")).await;
    let (pod, container) = (berth.pod_config("pod"), sleeper("c"));
    let security = serde_json::json!({ "namespace_options": { "pid": 1 } });
    let parent = pod.linux.as_ref().unwrap().cgroup_parent.clone();
    let pod = serde_json::json!({
        "metadata": { "name": "pod", "namespace": "default", "uid": "pod", "attempt": 0 },
        "log_directory": pod.log_directory,
        "linux": { "cgroup_parent": parent },
    });
    let container = serde_json::json!({
        "metadata": { "name": "c" },
        "image": { "image": container.image.unwrap().image },
        "command": container.command,
        "log_path": "c.log",
        "linux": { "security_context": security },
    });
    fs::write(berth.path("pod.json"), pod.to_string()).unwrap();
    fs::write(berth.path("container.json"), container.to_string()).unwrap();
    let example = block("sh").replace("/run/berth", &berth.path("run").display().to_string());
    let socket = format!("unix://{}", berth.path("run/berth.sock").display());
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", tools().display());
    let folder = berth.path("");
    let output = berth
        .command_on_host("/bin/sh".as_ref())
        .args(["-ec", &example])
        .current_dir(folder)
        .env("PATH", path)
        .envs([("CONTAINER_RUNTIME_ENDPOINT", &socket), ("IMAGE_SERVICE_ENDPOINT", &socket)])
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}{stderr}");
    assert!(stdout.contains("hello\n") && stdout.contains("running"), "{stdout}{stderr}");
    for file in ["pod", "container", "pod.json", "container.json"] {
        fs::remove_file(berth.path(file)).unwrap();
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[test]
fn check_shows_whether_a_runtime_runs() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    fs::write(&file, format!("{}[handlers.gone]\npath = \"/no/such/runtime\"\n", handlers())).unwrap();
    let berth = env!("CARGO_BIN_EXE_berth");
    let output = Command::new(berth).args(["check", "--json", "--config"]).arg(&file).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let row = |name: &str| {
        let mut rows = report["rows"].as_array().unwrap().iter();
        rows.find(|row| row["what"] == format!("runtime handler {name}")).unwrap().clone()
    };
    assert_eq!(row("runc")["found"], "yes");
    assert!(row("runc")["detail"].as_str().unwrap().starts_with("runc version"));
    assert_eq!(row("gone")["found"], "no");
    assert!(row("gone")["detail"].as_str().unwrap().contains("No such file"));
}
