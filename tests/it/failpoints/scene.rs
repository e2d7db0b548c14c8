//! A daemon with a pod that must survive, and the failpoints.

use std::fmt;
use std::fs;
use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use berth::operation::Step;
use berth_image::PullStep;
use berth_proto::v1::*;
use berth_runtime::keeper_step::KeeperStep;
use rustix::process::{Pid, Signal, kill_process};
use tokio::task::JoinHandle;
use tonic::Status;

use crate::fsck::fsck;
use crate::support::{Berth, PATIENCE, Setup, sleeper};

/// The time in which a step must be reached after its call has ended.
const LATE: Duration = Duration::from_secs(5);

/// A call in a task.
pub(super) type Call = JoinHandle<Result<(), Status>>;

/// Starts a call.
pub(super) fn begin<T: Send + 'static>(
    call: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Call {
    tokio::spawn(async move { call.await.map(drop) })
}

/// A step at which a process stops.
#[derive(Clone, Copy)]
pub(super) struct Point(&'static str, &'static str);

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl From<Step> for Point {
    fn from(step: Step) -> Self {
        Self(step.operation, step.id)
    }
}

impl From<KeeperStep> for Point {
    fn from(step: KeeperStep) -> Self {
        Self(KeeperStep::OPERATION, step.id())
    }
}

impl From<PullStep> for Point {
    fn from(step: PullStep) -> Self {
        Self(PullStep::OPERATION, step.id())
    }
}

/// A process that has stopped at a step.
pub(super) struct Stopped {
    pub(super) pid: i32,
    file: PathBuf,
}

impl Stopped {
    pub(super) fn release(self) {
        fs::remove_file(self.file).unwrap();
    }

    /// Kills the process, which is not the daemon, and waits for its end.
    pub(super) async fn kill(self) {
        end(self.pid).await;
    }
}

async fn end(pid: i32) {
    let _gone = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
    let until = Instant::now() + PATIENCE;
    let is_there = || fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|command| !command.is_empty());
    while is_there() {
        assert!(Instant::now() < until, "process {pid} does not end");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A daemon with a pod that must survive.
pub(super) struct Scene {
    pub(super) berth: Berth,
    /// The pod, its container and its address.
    pub(super) other: (String, String, String),
    count: u32,
}

impl Scene {
    pub(super) async fn new(more: &str) -> Self {
        let mut berth = Berth::start_as(Setup { more, ..Setup::default() }).await;
        fs::create_dir(berth.path("failpoints")).unwrap();
        let pod = berth.run_pod(berth.pod_config("other")).await;
        let container = berth.run(&pod, sleeper("survivor")).await;
        let address = berth.pod_status(&pod).await.network.unwrap().ip;
        Self { berth, other: (pod, container, address), count: 0 }
    }

    /// Returns a name that no pod has had.
    pub(super) fn name(&mut self) -> String {
        self.count += 1;
        format!("victim-{}", self.count)
    }

    /// Lets the next process that reaches a step stop there.
    pub(super) fn arm(&self, point: impl Into<Point>) {
        fs::write(self.berth.path("failpoints").join(point.into().to_string()), "").unwrap();
    }

    /// Waits until a process has stopped at an armed step.
    pub(super) async fn stopped(&self, point: impl Into<Point>, call: &Call) -> Stopped {
        let point = point.into();
        let prefix = format!("{point}.");
        let (mut until, mut ended) = (Instant::now() + PATIENCE, false);
        loop {
            for entry in fs::read_dir(self.berth.path("failpoints")).unwrap().flatten() {
                let name = entry.file_name().into_string().unwrap();
                if let Some(pid) = name.strip_prefix(&prefix) {
                    return Stopped { pid: pid.parse().unwrap(), file: entry.path() };
                }
            }
            if call.is_finished() && !ended {
                (until, ended) = (Instant::now() + LATE, true);
            }
            assert!(Instant::now() < until, "{point} is not reached; the call has ended: {ended}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Kills the daemon at a step, starts the next one, and returns the end of the call for which nobody has answered.
    pub(super) async fn daemon_dies(&mut self, point: impl Into<Point>, call: Call) {
        let point = point.into();
        let stopped = self.stopped(point, &call).await;
        assert_eq!(stopped.pid, self.berth.pid().as_raw_nonzero().get(), "{point}");
        self.berth.kill();
        let answer = call.await.unwrap();
        assert!(answer.is_err(), "{point} is before the answer");
        stopped.release();
        self.berth.restart().await;
    }

    /// Kills the keeper of a pod while the daemon is at a step, and returns the answer of the call.
    pub(super) async fn keeper_dies(
        &mut self,
        point: impl Into<Point>,
        pod: Option<&str>,
        call: Call,
    ) -> Result<(), Status> {
        let point = point.into();
        let stopped = self.stopped(point, &call).await;
        assert_eq!(stopped.pid, self.berth.pid().as_raw_nonzero().get(), "{point}");
        let pod = pod.map_or_else(|| self.newest(), str::to_owned);
        let keepers = keepers_of(&pod);
        assert!(!keepers.is_empty(), "{point}: pod {pod} has no keeper");
        for keeper in keepers {
            end(keeper).await;
        }
        stopped.release();
        answer(point, call).await
    }

    /// Returns the pod that is being created.
    pub(super) fn newest(&self) -> String {
        let pods = fs::read_dir(self.berth.path("run/pods")).unwrap().flatten();
        let pods = pods.map(|pod| pod.file_name().into_string().unwrap());
        let pods: Vec<_> = pods.filter(|pod| *pod != self.other.0).collect();
        assert_eq!(pods.len(), 1, "{pods:?}");
        pods.into_iter().next().unwrap()
    }

    pub(super) async fn pods(&mut self) -> Vec<PodSandbox> {
        let list = self.berth.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await;
        let pods = list.unwrap().into_inner().items.into_iter();
        pods.filter(|pod| pod.id != self.other.0).collect()
    }

    pub(super) async fn containers(&mut self) -> Vec<Container> {
        let list = self.berth.runtime.list_containers(ListContainersRequest::default()).await;
        let containers = list.unwrap().into_inner().containers.into_iter();
        containers.filter(|container| container.id != self.other.1).collect()
    }

    /// The pod runs, and a new container in it too. Its address is only its own.
    pub(super) async fn assert_works(&mut self, point: impl Into<Point>, pod: &str) {
        let point = point.into();
        let status = self.berth.pod_status(pod).await;
        assert_eq!(status.state(), PodSandboxState::SandboxReady, "{point}");
        assert_ne!(status.network.unwrap().ip, self.other.2, "{point}");
        let name = self.name();
        let container = self.berth.run(pod, sleeper(&name)).await;
        assert_eq!(self.berth.sh(&container, "echo works").await, "works", "{point}");
    }

    /// Removes the pods of the step. The other pod has not noticed anything, and nothing else is left.
    pub(super) async fn end_step(&mut self, point: impl Into<Point>) {
        let point = point.into();
        for pod in self.pods().await {
            self.berth.remove_pod(&pod.id).await;
        }
        assert!(self.containers().await.is_empty(), "{point}");
        let (pod, container, address) = self.other.clone();
        let status = self.berth.pod_status(&pod).await;
        assert_eq!(status.state(), PodSandboxState::SandboxReady, "{point}");
        assert_eq!(status.network.unwrap().ip, address, "{point}");
        assert_eq!(self.berth.status(&container).await.state(), ContainerState::ContainerRunning, "{point}");
        assert_eq!(self.berth.sh(&container, "echo there").await, "there", "{point}");
        let until = Instant::now() + PATIENCE;
        // A daemon that has just started clears up while it already answers.
        loop {
            let findings = fsck(&self.berth, &[]).1;
            if findings.is_empty() {
                return;
            }
            assert!(Instant::now() < until, "{point}: {findings:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Removes everything. No daemon has tried to write a record of something that was undone or removed.
    pub(super) async fn end(mut self) {
        assert_eq!(self.berth.clean().await, Vec::<String>::new());
        let log = fs::read_to_string(self.berth.path("daemon.log")).unwrap();
        let failed: Vec<_> = log.lines().filter(|line| line.contains("failed to write records")).collect();
        assert!(failed.is_empty(), "{failed:?}");
    }
}

/// Waits for the answer of a call.
pub(super) async fn answer(point: Point, call: Call) -> Result<(), Status> {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(answer) => answer.unwrap(),
        Err(_) => panic!("the call is not answered after {point}"),
    }
}

/// Returns the keepers of a pod, with children that have not executed their program yet.
fn keepers_of(pod: &str) -> Vec<i32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let of_pod = processes.filter_map(|process| {
        let command = fs::read(process.path().join("cmdline")).ok()?;
        let mut words = command.split(|byte| *byte == 0);
        let is_keeper = words.next() == Some(b"berth-keeper") && words.next() == Some(pod.as_bytes());
        is_keeper.then(|| process.file_name().to_str()?.parse().ok())?
    });
    of_pod.collect()
}
