//! Facts survive: what has happened to a pod is known and told right whatever becomes of pids, descriptors, disks, keepers
//! and the daemon meanwhile. Runs as root.
//!
//! * [`pids`]: pids that are used again
//! * [`descriptors`]: few file descriptors
//! * [`execs`]: what execs have left running, over a restart
//! * [`disks`]: full, read-only and frozen disks
//! * [`recovery`]: restarts in the middle of a stop, slow plugins
//! * [`silent`]: keepers that do not answer
//! * [`races`]: calls that cross
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    reason = "a test stops at the first surprise"
)]

mod descriptors;
mod disks;
mod execs;
mod pids;
mod races;
mod recovery;
mod silent;
#[path = "../support/mod.rs"]
mod support;

use std::future::Future;
use std::time::{Duration, Instant};

use berth_proto::v1::*;
use rustix::process::{Pid, Signal, kill_process};
use support::{Berth, PATIENCE};

/// Waits for an answer, but not for ever.
async fn answered<T>(what: &str, call: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(answer) => answer,
        Err(_) => panic!("{what} is not answered"),
    }
}

/// Waits until something is so.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let last = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < last, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The keepers of a pod, by their pids.
fn keepers_of(pod: &str) -> Vec<i32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let of_pod = processes.filter_map(|process| {
        let command = std::fs::read(process.path().join("cmdline")).ok()?;
        let mut words = command.split(|byte| *byte == 0);
        let is_keeper = words.next() == Some(b"berth-keeper") && words.next() == Some(pod.as_bytes());
        is_keeper.then(|| process.file_name().to_str()?.parse().ok())?
    });
    of_pod.collect()
}

/// Sends a signal to the keeper of a pod: the oldest process of its name, since children on their way have that, too.
fn signal_keeper(pod: &str, signal: Signal) {
    let keeper = keepers_of(pod).into_iter().min().unwrap();
    kill_process(Pid::from_raw(keeper).unwrap(), signal).unwrap();
}

/// The state of a container as a list tells it; none where there is none.
async fn listed(berth: &mut Berth, container: &str) -> Option<ContainerState> {
    let list = berth.runtime.list_containers(ListContainersRequest::default()).await.unwrap().into_inner();
    list.containers.into_iter().find(|found| found.id == container).map(|found| found.state())
}

/// The pods that are listed.
async fn pods(berth: &mut Berth) -> Vec<(String, PodSandboxState)> {
    let list = berth.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap().into_inner();
    list.items.into_iter().map(|pod| (pod.id.clone(), pod.state())).collect()
}

/// Waits until a pod is not ready.
async fn not_ready(berth: &mut Berth, pod: &str) {
    let last = Instant::now() + PATIENCE;
    while berth.pod_status(pod).await.state() == PodSandboxState::SandboxReady {
        assert!(Instant::now() < last, "{pod} stays ready");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The pause of a pod.
async fn pause_of(berth: &mut Berth, pod: &str) -> Pid {
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod.to_owned(), verbose: true };
    let info = berth.runtime.pod_sandbox_status(request).await.unwrap().into_inner().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
    Pid::from_raw(i32::try_from(info["pid"].as_i64().unwrap()).unwrap()).unwrap()
}
