//! Recovery with fakes, and without root: what becomes of the records of an earlier daemon.

use std::sync::Arc;

use berth_proto::v1::{ContainerConfig, PodSandboxConfig};
use berth_runtime::wire::{Call, ContainerSnapshot, Outcome, Phase, Snapshot};

use super::{PendingCleanup, containers, load, pods};
use crate::fakes::FakeNode;
use crate::ids::{ContainerId, PodId};
use crate::keeper::fake::{FakeKeeper, without_containers};
use crate::pod::stopper::PodStopper;
use crate::store::pod::{FilesLocation, PodResources};
use crate::store::{Container, ContainerRecord, ContainerState, ExitReason, Pod, PodRecord, PodState};

/// The records of an earlier daemon: a pod and a container in it.
struct Records {
    node: FakeNode,
    pod: PodId,
    container: ContainerId,
}

impl Records {
    async fn of(pod: PodState, container: ContainerState) -> Self {
        let node = FakeNode::start().await;
        let pods = &node.daemon.pods;
        let pod = PodRecord {
            id: PodId::random(),
            config: PodSandboxConfig::default(),
            runtime_handler: String::new(),
            created_at: 1,
            boot_id: node.daemon.host.boot_id.clone(),
            cgroup: "/berth-unit-test/pod".to_owned(),
            selinux: None,
            log_folder: None,
            resources: PodResources::default(),
            files: FilesLocation::Pause,
            state: pod,
        };
        let container = ContainerRecord {
            id: ContainerId::random(),
            pod: pod.id.clone(),
            config: ContainerConfig::default(),
            image_id: String::new(),
            image_ref: String::new(),
            created_at: 1,
            boot_id: pod.boot_id.clone(),
            log_path: None,
            cgroup: "/berth-unit-test/container".to_owned(),
            stop_signal: 15,
            user: crate::store::container::RecordedUser::default(),
            resources: None,
            update_annotations: std::collections::BTreeMap::new(),
            image: None,
            state: container,
        };
        let (pod_id, container_id) = (pod.id.clone(), container.id.clone());
        for folder in [pods.folders.pod(&pod.id), pods.folders.pod_state(&pod.id)] {
            std::fs::create_dir_all(folder).unwrap();
        }
        std::fs::create_dir_all(pods.folders.container(&container.id)).unwrap();
        let file = pods.folders.pod(&pod.id).join("pod.json");
        Pod::new(pod, file, pods.records.clone()).intend(|_| {}).unwrap();
        let folder = pods.folders.container(&container.id);
        Container::new(container, folder, pods.records.clone()).intend(|_| {}).unwrap();
        Self { node, pod: pod_id, container: container_id }
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
