//! A daemon with pods, metrics and traces does nothing while nothing happens: no thread of the daemon and no process of a
//! pod's keeper is woken. Voluntary context switches count wake-ups; unlike CPU time they do not depend on the load of the
//! machine. Runs as root.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use crate::support::{Berth, shell};
use crate::traces::Receiver;

/// Longer than every usual timer: the batches of traces (5 s), idle threads (10 s).
const WINDOW: Duration = Duration::from_secs(12);

/// After this time, threads and processes that serve no call any more have ended.
const QUIET: Duration = Duration::from_secs(90);

/// Returns the wake-ups of each thread of these processes.
fn wakeups(pids: &[i32]) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    for pid in pids {
        for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.map(|value| value.trim_start_matches(':').trim().to_owned()).unwrap_or_default()
            };
            let number = field("voluntary_ctxt_switches").parse().unwrap_or(0);
            found.insert(format!("{} of {pid}, {}", thread.path().display(), field("Name")), number);
        }
    }
    found
}

/// Returns the keepers of the pods and their children, without the containers.
fn keepers(pods: &[String]) -> Vec<i32> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<i32>() else { continue };
        let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).into_owned();
        if command.starts_with("berth-keeper") && pods.iter().any(|pod| command.contains(pod.as_str())) {
            let children =
                fs::read_to_string(process.path().join(format!("task/{pid}/children"))).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
            found.push(pid);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_with_pods_metrics_and_traces_is_not_woken() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("metrics.sock");
    let mut berth = Berth::start_with(&format!("metrics_address = \"unix://{}\"\n", socket.display())).await;
    berth.load_image().await;
    let (receiver, endpoint) = Receiver::start(berth.host_process());
    berth.start_under(&["env", &format!("OTEL_EXPORTER_OTLP_ENDPOINT={endpoint}")]);
    berth.restart().await;
    let mut pods = Vec::new();
    for number in 0..5 {
        let pod = berth.run_pod(berth.pod_config(&format!("pod{number}"))).await;
        let id = berth.run(&pod, shell("sleeps", "exec sleep 10000")).await;
        berth.sh(&id, "true").await;
        pods.push(pod);
    }
    let curl = ["--silent", "--unix-socket", socket.to_str().unwrap(), "http://localhost/metrics"];
    assert!(std::process::Command::new("curl").args(curl).output().unwrap().stdout.len() > 1000);
    receiver.wait_for_any("operation RunPodSandbox").await;
    let until = Instant::now() + QUIET;
    loop {
        let mut pids = keepers(&pods);
        assert!(pids.len() >= 2 * pods.len(), "{pids:?}");
        pids.push(berth.pid().as_raw_nonzero().get());
        let before = wakeups(&pids);
        tokio::time::sleep(WINDOW).await;
        let after = wakeups(&pids);
        let woken: Vec<_> =
            before.iter().filter(|(thread, count)| after.get(*thread) != Some(count)).collect();
        if woken.is_empty() {
            break;
        }
        assert!(Instant::now() < until, "woken in {WINDOW:?}: {woken:#?} {after:#?}");
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
