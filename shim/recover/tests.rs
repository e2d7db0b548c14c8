//! Recovery with fakes, and without root: what becomes of the records of an earlier daemon.

use std::sync::Arc;

use berth_runtime::wire::{Call, ContainerSnapshot, Outcome, Phase, Snapshot};

use super::{PendingCleanup, containers, load, pods};
use crate::fakes::FakeNode;
use crate::ids::{ContainerId, PodId};
use crate::keeper::fake::{FakeKeeper, without_containers};
use crate::pod::stopper::PodStopper;
use crate::store::{Container, ContainerState, ExitReason, Pod, PodState};

/// The records of an earlier daemon: a pod and a container in it.
struct Records {
    node: FakeNode,
    pod: PodId,
    container: ContainerId,
}

impl Records {
    async fn of(pod: PodState, container: ContainerState) -> Self {
        let node = FakeNode::start().await;
        let (pod, container) = node.objects(pod, container);
        pod.intend(|_| {}).unwrap();
        container.intend(|_| {}).unwrap();
        Self { node, pod: pod.id.clone(), container: container.id.clone() }
    }

    /// Loads the records, as a new daemon does.
    async fn load(&self) -> (PodStopper, PendingCleanup) {
        let stopper = PodStopper::of(&self.node.daemon);
        let cleanup = load(&stopper, &self.node.daemon.images).await.unwrap();
        (stopper, cleanup)
    }

    /// Does what recovery does in the background, except what concerns the whole host.
    async fn finish(&self, stopper: &PodStopper, cleanup: PendingCleanup) {
        let images = &self.node.daemon.images;
        containers::finish(&stopper.pods.folders, &stopper.cgroups, images, cleanup.containers).await;
        pods::finish(stopper, cleanup.pods).await;
    }

    fn pod(&self) -> Arc<Pod> {
        self.node.daemon.pods.store.pod(self.pod.as_str()).unwrap()
    }

    fn container(&self) -> Arc<Container> {
        self.node.daemon.pods.store.container(self.container.as_str()).unwrap()
    }

    fn state_folder(&self) -> std::path::PathBuf {
        self.node.daemon.pods.folders.pod_state(&self.pod)
    }
}

const READY: PodState = PodState::Ready { pause_pid: 1 };
const RUNNING: ContainerState = ContainerState::Running { pid: 1, started_at: 7 };

#[tokio::test]
async fn a_pod_whose_keeper_is_gone_is_released_and_its_containers_have_ended() {
    let records = Records::of(READY, RUNNING).await;
    let (stopper, cleanup) = records.load().await;
    assert_eq!(records.pod().state(), PodState::NotReady { released: false });
    let ContainerState::Exited(exit) = records.container().state() else { panic!("it still runs") };
    assert_eq!((exit.code, exit.reason, exit.started_at), (255, ExitReason::ContainerStatusUnknown, 7));
    records.finish(&stopper, cleanup).await;
    assert_eq!(records.pod().state(), PodState::NotReady { released: true });
    let effects = records.node.host.journal.entries();
    assert!(effects.contains(&"detach"), "{effects:?}");
    // The cgroups of the container and of the pod.
    assert!(effects.iter().filter(|effect| **effect == "release cgroup").count() >= 2, "{effects:?}");
}

#[tokio::test]
async fn a_release_that_fails_leaves_the_pod_for_the_next_attempt() {
    let records = Records::of(READY, RUNNING).await;
    records.node.host.fail("detach");
    let (stopper, cleanup) = records.load().await;
    records.finish(&stopper, cleanup).await;
    assert_eq!(records.pod().state(), PodState::NotReady { released: false });
    records.node.host.repair("detach");
    stopper.stop(&records.pod()).await.unwrap();
    assert_eq!(records.pod().state(), PodState::NotReady { released: true });
}

#[tokio::test]
async fn a_pod_with_a_half_made_record_is_removed() {
    let records = Records::of(PodState::Creating, ContainerState::Creating).await;
    let (stopper, cleanup) = records.load().await;
    assert!(stopper.pods.store.pods().is_empty() && stopper.pods.store.containers().is_empty());
    records.finish(&stopper, cleanup).await;
    assert_eq!(records.node.folders(), Vec::<String>::new());
    let effects = records.node.host.journal.entries();
    assert_eq!(effects, ["release cgroup", "detach", "release cgroup"]);
}

#[tokio::test]
async fn a_pod_whose_keeper_answers_goes_on() {
    let records = Records::of(READY, ContainerState::Created { pid: 9 }).await;
    let snapshot = Snapshot {
        containers: vec![ContainerSnapshot {
            id: records.container.as_str().to_owned(),
            pid: 9,
            phase: Phase::Running { started_at: 42 },
            poststop_failure: None,
        }],
        ..without_containers()
    };
    let react = |call: &Call| match call {
        Call::Namespaces => (Ok(Outcome::Sandbox { pid: 1 }), None),
        _ => (Ok(Outcome::Done), None),
    };
    let keeper = FakeKeeper::left_behind(&records.pod, &records.state_folder(), snapshot, react);
    let (stopper, cleanup) = records.load().await;
    assert_eq!(records.pod().state(), READY);
    // The start of the earlier daemon was not recorded; the keeper reports it.
    assert_eq!(records.container().state(), ContainerState::Running { pid: 9, started_at: 42 });
    records.finish(&stopper, cleanup).await;
    assert_eq!(records.pod().state(), READY, "nothing of a living pod is released");
    assert_eq!(records.node.host.journal.entries(), Vec::<&str>::new());
    assert_eq!(keeper.calls(), ["Hello", "Namespaces"]);
    assert!(records.pod().netns().is_some());
}
