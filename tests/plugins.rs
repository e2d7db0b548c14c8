//! Network plugins that are programs, and a daemon that is killed while one runs. Runs as root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails says so by panicking")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use berth_proto::v1::RunPodSandboxRequest;
use support::{Berth, PATIENCE};

/// Installs a plugin of this script and a configuration that uses it alone.
fn install(berth: &Berth, script: &str) {
    let bin = berth.path("bin");
    fs::create_dir_all(&bin).unwrap();
    let plugin = bin.join("scripted");
    fs::write(&plugin, script).unwrap();
    fs::set_permissions(&plugin, PermissionsExt::from_mode(0o755)).unwrap();
    let conflist = r#"{"cniVersion": "1.0.0", "name": "scripted", "plugins": [{"type": "scripted"}]}"#;
    fs::write(berth.path("net.d/10-scripted.conflist"), conflist).unwrap();
}

async fn until(what: &str, mut there: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !there() {
        assert!(Instant::now() < until, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn text(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_of_a_killed_daemon_ends_before_the_next_call() {
    let mut berth = Berth::start_with("").await;
    let log = berth.path("plugin.log");
    let (log_path, children) = (log.display().to_string(), berth.path("children"));
    // Both notice each other: a call says when it begins and ends, and ADD does not end by itself.
    let script = format!(
        "#!/bin/sh\necho \"$CNI_COMMAND begins\" >>{log_path}\n\
         if [ \"$CNI_COMMAND\" = ADD ]; then trap '' TERM; sleep 1000 & echo $$ $! >>{}; wait; sleep 1000; fi\n\
         echo \"$CNI_COMMAND ends\" >>{log_path}\n",
        children.display()
    );
    install(&berth, &script);
    let mut client = berth.runtime.clone();
    let request = RunPodSandboxRequest { config: Some(berth.pod_config("pod")), ..Default::default() };
    let running = tokio::spawn(async move { client.run_pod_sandbox(request).await.map(drop) });
    until("the plugin does not start", || text(&children).ends_with('\n')).await;
    berth.kill();
    assert!(running.await.unwrap().is_err());
    let pids: Vec<i32> = text(&children).split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    let lives = |pid: &i32| {
        let status = text(Path::new(&format!("/proc/{pid}/status")));
        status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
    };
    assert!(pids.iter().all(lives), "nobody has ended it yet");
    berth.restart().await;
    until("the plugin is not called again", || text(&log).contains("DEL ends")).await;
    assert!(!pids.iter().any(lives), "the plugin and its child have ended");
    assert_eq!(text(&log).lines().next(), Some("ADD begins"));
    assert!(!text(&log).contains("ADD ends"), "{}", text(&log));
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_hangs_or_prints_garbage_fails_its_pod_only() {
    let mut berth = Berth::start_with("cni_plugin_timeout = 2\n").await;
    let pids = berth.path("pids");
    let add = |script: &str| {
        format!("#!/bin/sh\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\necho $$ >>{}\n{script}\n", pids.display())
    };
    for (script, words) in [
        ("trap '' TERM INT HUP; sleep 1000 & wait; sleep 1000", "did not end within 2 s"),
        ("echo this is no result", "no result"),
        ("exec cat /dev/zero", "output exceeds"),
        ("echo broken >&2; exit 7", "broken"),
    ] {
        install(&berth, &add(script));
        let error = berth.try_run_pod(berth.pod_config("pod")).await.unwrap_err();
        assert!(error.message().contains(words), "{script}: {error}");
    }
    for pid in text(&pids).split_whitespace() {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        assert!(environment.is_empty(), "plugin {pid} still runs");
    }
    // What it leaves in the background holds nothing up.
    let result = r#"{"cniVersion": "1.0.0", "interfaces": [], "ips": []}"#;
    install(&berth, &add(&format!("sleep 30 & echo '{result}'")));
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    berth.remove_pod(&pod).await;
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
