//! Decisions about pods and containers, tested with a fake keeper and without root: start, stop and recovery.

use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_runtime::wire::{Call, Event, ExitRecord, Failure, InitFailure, Outcome, Step};

use crate::container::{start, stop};
use crate::fakes::FakeNode;
use crate::keeper::KeeperClient;
use crate::keeper::fake::{FakeKeeper, Reaction};
use crate::pod::follow;
use crate::pod::stopper::PodStopper;
use crate::store::{Container, ContainerState, ExitReason, Pod, PodState};

/// A daemon with one pod and one container in its store.
struct Node {
    stopper: PodStopper,
    pod: Arc<Pod>,
    container: Arc<Container>,
    _node: FakeNode,
}

impl Node {
    async fn new(state: ContainerState) -> Self {
        let node = FakeNode::start().await;
        let (pod, container) = node.objects(PodState::Ready { pause_pid: 1 }, state);
        let (pod, container) = (Arc::new(pod), Arc::new(container));
        node.daemon.pods.store.insert_pod(pod.clone());
        node.daemon.pods.store.insert_container(container.clone());
        Self { stopper: PodStopper::of(&node.daemon), pod, container, _node: node }
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
    let node = Node::new(ContainerState::Created { pid: 1 }).await;
    let (keeper, _link) = node.keeper(|_| (Ok(Outcome::Started { at: 42, pid: None }), None));
    node.start().await.unwrap();
    assert_eq!(node.container.state(), ContainerState::Running { pid: 1, started_at: 42 });
    let again = node.start().await.unwrap_err();
    assert_eq!(again.code(), tonic::Code::FailedPrecondition, "{again}");
    assert_eq!(keeper.calls(), ["Start"], "the second start does not reach the keeper");
}

#[tokio::test]
async fn a_start_whose_exec_fails_reports_the_reason() {
    let node = Node::new(ContainerState::Created { pid: 1 }).await;
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
    let node = Node::new(running()).await;
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
    let node = Node::new(running()).await;
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
    let node = Node::new(running()).await;
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
