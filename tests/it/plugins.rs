//! Network plugins that are programs, and a daemon that is killed while one runs. Runs as root.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::{Berth, PATIENCE};
use berth_proto::v1::RunPodSandboxRequest;

/// Installs a plugin with this script and a conflist that uses only this plugin.
fn install(berth: &Berth, script: &str) {
    let bin = berth.path("bin");
    fs::create_dir_all(&bin).unwrap();
    let plugin = bin.join("scripted");
    fs::write(&plugin, script).unwrap();
    fs::set_permissions(&plugin, PermissionsExt::from_mode(0o755)).unwrap();
    let conflist = r#"{"cniVersion": "1.0.0", "name": "scripted", "plugins": [{"type": "scripted"}]}"#;
    fs::write(berth.path("net.d/10-scripted.conflist"), conflist).unwrap();
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn text(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_left_by_a_killed_daemon_is_ended_before_the_next_call() {
    let mut berth = Berth::start_with("").await;
    let log = berth.path("plugin.log");
    let (log_path, children) = (log.display().to_string(), berth.path("children"));
    // The log shows overlapping calls: each call writes a line when it begins and when it ends. ADD does not end by
    // itself.
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
    let is_running = |pid: &i32| {
        let status = text(Path::new(&format!("/proc/{pid}/status")));
        status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
    };
    assert!(pids.iter().all(is_running), "the plugin must still run after the daemon was killed");
    berth.restart().await;
    until("the plugin is not called again", || text(&log).contains("DEL ends")).await;
    assert!(!pids.iter().any(is_running), "the plugin and its child must have ended");
    assert_eq!(text(&log).lines().next(), Some("ADD begins"));
    assert!(!text(&log).contains("ADD ends"), "{}", text(&log));
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_or_broken_plugin_fails_only_its_pod() {
    let mut berth = Berth::start_with("cni_plugin_timeout = 2\n").await;
    let pids = berth.path("pids");
    let add = |script: &str| {
        format!("#!/bin/sh\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\necho $$ >>{}\n{script}\n", pids.display())
    };
    for (script, words) in [
        ("trap '' TERM INT HUP; sleep 1000 & wait; sleep 1000", "did not end within 2 s"),
        ("echo this is not a result", "no result"),
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
    // A background process that the plugin leaves does not delay the call.
    let result = r#"{"cniVersion": "1.0.0", "interfaces": [], "ips": []}"#;
    install(&berth, &add(&format!("sleep 30 & echo '{result}'")));
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    berth.remove_pod(&pod).await;
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
