//! The state of pods is known and reported correctly in spite of reused pids, few descriptors, faulty disks, keepers
//! that do not answer, and restarts of the daemon. Runs as root.
//!
//! * [`pids`]: reused pids
//! * [`descriptors`]: few file descriptors
//! * [`execs`]: background processes of execs over a restart
//! * [`disks`]: full, read-only and frozen disks
//! * [`recovery`]: restarts during a stop, slow plugins
//! * [`silent`]: keepers that do not answer
//! * [`races`]: concurrent calls

mod descriptors;
mod disks;
mod execs;
mod pids;
mod races;
mod recovery;
mod silent;

use std::future::Future;
use std::time::{Duration, Instant};

use crate::support::{Berth, PATIENCE};
use berth_proto::v1::*;
use rustix::process::{Pid, Signal, kill_process};

/// Waits for an answer with a time limit.
async fn answered<T>(what: &str, call: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(answer) => answer,
        Err(_) => panic!("{what} is not answered"),
    }
}

/// Waits until a condition is true.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let last = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < last, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Returns the pids of a pod's keepers.
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

/// Sends a signal to the keeper of a pod. It is the oldest process with its name, because a child has the same name
/// before it executes another program.
fn signal_keeper(pod: &str, signal: Signal) {
    let keeper = keepers_of(pod).into_iter().min().unwrap();
    kill_process(Pid::from_raw(keeper).unwrap(), signal).unwrap();
}

/// Returns the state of a container in the list, or `None` if it is not listed.
async fn listed(berth: &mut Berth, container: &str) -> Option<ContainerState> {
    let list = berth.runtime.list_containers(ListContainersRequest::default()).await.unwrap().into_inner();
    list.containers.into_iter().find(|found| found.id == container).map(|found| found.state())
}

/// Returns the listed pods.
async fn pods(berth: &mut Berth) -> Vec<(String, PodSandboxState)> {
    let list = berth.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap().into_inner();
    list.items.into_iter().map(|pod| (pod.id.clone(), pod.state())).collect()
}

/// Waits until a pod is not ready.
async fn wait_until_not_ready(berth: &mut Berth, pod: &str) {
    let last = Instant::now() + PATIENCE;
    while berth.pod_status(pod).await.state() == PodSandboxState::SandboxReady {
        assert!(Instant::now() < last, "{pod} stays ready");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Returns the pid of a pod's pause.
async fn pause_of(berth: &mut Berth, pod: &str) -> Pid {
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod.to_owned(), verbose: true };
    let info = berth.runtime.pod_sandbox_status(request).await.unwrap().into_inner().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
    Pid::from_raw(i32::try_from(info["pid"].as_i64().unwrap()).unwrap()).unwrap()
}
