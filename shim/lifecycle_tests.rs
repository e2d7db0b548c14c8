//! Decisions about pods and containers, tested with a fake keeper and without root: start, stop and recovery.

use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_proto::v1::{CgroupDriver, ContainerConfig, PodSandboxConfig};
use berth_runtime::client::Programs;
use berth_runtime::wire::{Call, Event, ExitRecord, Failure, InitFailure, Outcome, Step};

use crate::cgroups::Cgroups;
use crate::config::Config;
use crate::container::{start, stop};
use crate::ids::{ContainerId, PodId};
use crate::instruments::Instruments;
use crate::keeper::KeeperClient;
use crate::keeper::fake::{FakeKeeper, Reaction};
use crate::network::PodNetwork;
use crate::pod::follow;
use crate::pod::stopper::PodStopper;
use crate::pods::Pods;
use crate::store::pod::{FilesLocation, PodResources};
use crate::store::{Container, ContainerRecord, ContainerState, ExitReason, Pod, PodRecord, PodState};

/// The parts of a daemon with one pod and one container, in a private folder.
struct Node {
    stopper: PodStopper,
    pod: Arc<Pod>,
    container: Arc<Container>,
    _folder: tempfile::TempDir,
}

impl Node {
    fn new(state: ContainerState) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        let config = Config {
            root: place("root"),
            state: place("state"),
            cni_conf_dir: place("net.d"),
            cni_data_dir: place("addresses"),
            ..Config::default()
        };
        let instruments = Arc::new(Instruments::default());
        let network = Arc::new(PodNetwork::open(&config, instruments.clone()).unwrap());
        let pods = Arc::new(Pods::open(&config, network.network.clone(), instruments).unwrap());
        let programs = Arc::new(Programs::seal(b"", b"").unwrap());
        let cgroups = Cgroups::detect(CgroupDriver::Cgroupfs, &programs, folder.path()).unwrap();
        let pod_record = PodRecord {
            id: PodId::random(),
            config: PodSandboxConfig::default(),
            runtime_handler: String::new(),
            created_at: 1,
            boot_id: String::new(),
            cgroup: "/berth-unit-test/pod".to_owned(),
            selinux: None,
            log_folder: None,
            resources: PodResources::default(),
            files: FilesLocation::Pause,
            state: PodState::Ready { pause_pid: 1 },
        };
        let record = ContainerRecord {
            id: ContainerId::random(),
            pod: pod_record.id.clone(),
            config: ContainerConfig::default(),
            image_id: String::new(),
            image_ref: String::new(),
            created_at: 1,
            boot_id: String::new(),
            log_path: None,
            cgroup: "/berth-unit-test/container".to_owned(),
            stop_signal: 15,
            user: crate::store::container::RecordedUser::default(),
            resources: None,
            update_annotations: std::collections::BTreeMap::new(),
            image: None,
            state,
        };
        let folders = [pods.folders.pod(&pod_record.id), pods.folders.container(&record.id)];
        folders.iter().for_each(|folder| std::fs::create_dir_all(folder).unwrap());
        let files = pods.folders.pod(&pod_record.id).join("pod.json");
        let pod = Arc::new(Pod::new(pod_record, files, pods.records.clone()));
        let files = pods.folders.container(&record.id);
        let container = Arc::new(Container::new(record, files, pods.records.clone()));
        pods.store.insert_pod(pod.clone());
        pods.store.insert_container(container.clone());
        Self { stopper: PodStopper { pods, cgroups, network }, pod, container, _folder: folder }
    }

    /// Connects the pod to a fake keeper and follows its events.
    fn keeper(&self, react: impl FnMut(&Call) -> Reaction + Send + 'static) -> (FakeKeeper, KeeperClient) {
        let (keeper, link, updates) = FakeKeeper::start(react);
        self.pod.set_link(Some(link.clone()));
        follow::start(&self.stopper, &self.pod, &link, updates);
        (keeper, link)
    }

    async fn start(&self) -> Result<(), tonic::Status> {
        let PodStopper { pods, cgroups, .. } = &self.stopper;
        start::start_container(pods, cgroups, self.container.id.as_str()).await
    }

    async fn stop(&self, timeout: i64) -> Result<(), tonic::Status> {
        let PodStopper { pods, cgroups, .. } = &self.stopper;
        stop::stop_container(pods, cgroups, self.container.id.as_str(), timeout).await
    }

    fn exit(&self) -> crate::store::Exit {
        match self.container.state() {
            ContainerState::Exited(exit) => exit,
            state => panic!("the container has not ended: {state:?}"),
        }
    }
}

fn running() -> ContainerState {
    ContainerState::Running { pid: 1, started_at: 7 }
}

fn record(code: i32) -> ExitRecord {
    ExitRecord { code, signal: None, oom_killed: false, started_at: 7, finished_at: 9, failure: None }
}

#[tokio::test]
async fn a_started_container_runs_since_the_time_that_the_keeper_reports() {
    let node = Node::new(ContainerState::Created { pid: 1 });
    let (keeper, _link) = node.keeper(|_| (Ok(Outcome::Started { at: 42, pid: None }), None));
    node.start().await.unwrap();
    assert_eq!(node.container.state(), ContainerState::Running { pid: 1, started_at: 42 });
    let again = node.start().await.unwrap_err();
    assert_eq!(again.code(), tonic::Code::FailedPrecondition, "{again}");
    assert_eq!(keeper.calls(), ["Start"], "the second start does not reach the keeper");
}

#[tokio::test]
async fn a_start_whose_exec_fails_reports_the_reason() {
    let node = Node::new(ContainerState::Created { pid: 1 });
    let failure = InitFailure { step: Step::Exec, errno: 2, index: None, detail: String::new() };
    let (_keeper, _link) = node.keeper(move |_| (Err(Failure::Init(failure.clone())), None));
    let error = node.start().await.unwrap_err();
    assert!(error.message().contains("No such file or directory"), "{error}");
    let exit = node.exit();
    assert_eq!((exit.code, exit.reason, exit.started_at), (128, ExitReason::StartError, 0));
    assert!(exit.message.contains("No such file or directory"), "{}", exit.message);
}

#[tokio::test]
async fn a_container_that_ends_after_the_stop_signal_is_not_killed() {
    let node = Node::new(running());
    let id = node.container.id.as_str().to_owned();
    let (keeper, _link) = node.keeper(move |call| match call {
        Call::Signal { signal: 15, .. } => {
            let event = Event::Exited { container: id.clone(), record: record(3) };
            (Ok(Outcome::Done), Some(event))
        }
        _ => (Ok(Outcome::Done), None),
    });
    node.stop(60).await.unwrap();
    assert_eq!((node.exit().code, node.exit().finished_at), (3, 9));
    assert_eq!(keeper.calls(), ["Signal"]);
}

#[tokio::test]
async fn a_container_that_ignores_the_stop_signal_is_killed_after_the_grace_period() {
    let node = Node::new(running());
    let (keeper, _link) = node.keeper(|_| (Ok(Outcome::Done), None));
    let start = Instant::now();
    node.stop(1).await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1), "the grace period was cut short");
    assert_eq!((node.exit().code, node.exit().started_at), (137, 7));
    // The keeper, which does not know the container, was asked why no exit was reported.
    assert_eq!(keeper.calls(), ["Signal", "Hello"]);
}

#[tokio::test]
async fn a_pod_whose_keeper_dies_is_not_ready_and_its_containers_have_ended() {
    let node = Node::new(running());
    let (mut keeper, link) = node.keeper(|_| (Ok(Outcome::Done), None));
    keeper.kill();
    let exit = tokio::time::timeout(Duration::from_secs(60), node.container.ended()).await.unwrap();
    assert_eq!((exit.reason, exit.code), (ExitReason::ContainerStatusUnknown, 255));
    tokio::time::timeout(Duration::from_secs(60), node.pod.stopping()).await.unwrap();
    assert!(matches!(node.pod.state(), PodState::NotReady { .. }), "{:?}", node.pod.state());
    drop(link);
    let refused = node.start().await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");
}
