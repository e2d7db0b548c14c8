//! RunPodSandbox and CreateContainer with fakes of keeper, network, cgroups and mounts, and without root: the order of
//! the effects on the host, and their undo when a step fails.

use berth_proto::v1::{ContainerConfig, ContainerMetadata, ImageSpec, PodSandboxConfig, PodSandboxMetadata};
use tonic::{Code, Status};

use crate::container::create::create_container;
use crate::fakes::FakeNode;
use crate::pod::run::run_pod_sandbox;
use crate::store::{ContainerState, PodState};

/// The effects of a successful RunPodSandbox.
const RUN: [&str; 5] = ["create cgroup", "launch", "Hello", "Sandbox", "attach"];

/// The effects of a successful CreateContainer.
const CREATE: [&str; 3] = ["mount root", "create cgroup", "Create"];

fn pod(name: &str) -> PodSandboxConfig {
    let metadata = PodSandboxMetadata {
        name: name.to_owned(),
        namespace: "default".to_owned(),
        uid: format!("uid-of-{name}"),
        attempt: 0,
    };
    PodSandboxConfig { metadata: Some(metadata), hostname: name.to_owned(), ..PodSandboxConfig::default() }
}

fn container(name: &str, image: &str) -> ContainerConfig {
    let metadata = ContainerMetadata { name: name.to_owned(), attempt: 0 };
    let image = ImageSpec { image: image.to_owned(), ..ImageSpec::default() };
    ContainerConfig { metadata: Some(metadata), image: Some(image), ..ContainerConfig::default() }
}

impl FakeNode {
    async fn run(&self, config: PodSandboxConfig) -> Result<String, Status> {
        run_pod_sandbox(&self.daemon, config, String::new(), false).await
    }

    async fn create(&self, pod: &str, config: ContainerConfig) -> Result<String, Status> {
        create_container(&self.daemon, pod, config, None).await
    }
}

#[tokio::test]
async fn a_pod_is_ready_and_recorded_after_its_network_is_attached() {
    let node = FakeNode::start().await;
    let id = node.run(pod("web")).await.unwrap();
    assert_eq!(node.host.journal.entries(), RUN);
    let made = node.daemon.pods.store.pod(&id).unwrap();
    assert_eq!(made.state(), PodState::Ready { pause_pid: 1 });
    assert!(made.link().is_some() && made.netns().is_some(), "keeper and network namespace are kept");
    let record = node.daemon.pods.folders.pod(&made.id).join("pod.json");
    let text = std::fs::read_to_string(record).unwrap();
    assert!(text.contains(&id) && text.contains("uid-of-web"), "{text}");
}

#[tokio::test]
async fn a_pod_whose_network_cannot_be_attached_is_undone_in_reverse_order() {
    let node = FakeNode::start().await;
    node.host.fail("attach");
    let error = node.run(pod("web")).await.unwrap_err();
    assert!(error.message().contains("no attach today"), "{error}");
    let undo = ["detach", "Shutdown", "release cgroup"];
    assert_eq!(node.host.journal.entries(), [&RUN[..], &undo].concat());
    assert_eq!(node.folders(), Vec::<String>::new());
    assert!(node.daemon.pods.store.pods().is_empty());
}

#[tokio::test]
async fn a_failed_step_undoes_itself_and_those_before_it() {
    for (failing, undo) in [
        ("create cgroup", &["release cgroup"][..]),
        ("launch", &["release cgroup"]),
        ("Sandbox", &["Shutdown", "release cgroup"]),
    ] {
        let node = FakeNode::start().await;
        node.host.fail(failing);
        let error = node.run(pod("web")).await.unwrap_err();
        assert!(error.message().contains(&format!("no {failing} today")), "{error}");
        let done = RUN.iter().position(|step| *step == failing).unwrap();
        assert_eq!(node.host.journal.entries(), [&RUN[..=done], undo].concat(), "{failing}");
        assert_eq!(node.folders(), Vec::<String>::new(), "{failing}");
    }
}

#[tokio::test]
async fn an_undo_that_fails_is_reported_and_does_not_stop_the_others() {
    let node = FakeNode::start().await;
    for effect in ["attach", "detach", "release cgroup"] {
        node.host.fail(effect);
    }
    let error = node.run(pod("web")).await.unwrap_err();
    for effect in ["attach", "detach", "release cgroup"] {
        assert!(error.message().contains(&format!("no {effect} today")), "{error}");
    }
    assert_eq!(node.folders(), Vec::<String>::new(), "the folders are removed last");
}

#[tokio::test]
async fn a_second_pod_of_the_same_name_is_refused_with_the_id_of_the_first() {
    let node = FakeNode::start().await;
    let id = node.run(pod("web")).await.unwrap();
    let error = node.run(pod("web")).await.unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists, "{error}");
    assert!(error.message().contains(&id), "{error}");
    assert_eq!(node.host.journal.entries(), RUN, "nothing happens on the host");
    node.run(pod("db")).await.unwrap();
}

#[tokio::test]
async fn the_name_of_a_pod_whose_creation_failed_is_free() {
    let node = FakeNode::start().await;
    node.host.fail("attach");
    node.run(pod("web")).await.unwrap_err();
    node.host.repair("attach");
    node.run(pod("web")).await.unwrap();
}

#[tokio::test]
async fn a_container_without_an_image_leaves_nothing() {
    let node = FakeNode::start().await;
    let id = node.run(pod("web")).await.unwrap();
    let before = node.folders();
    let error = node.create(&id, container("app", "r.example/missing:1")).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
    assert!(error.message().contains("r.example/missing:1"), "{error}");
    assert_eq!(node.folders(), before);
    assert_eq!(node.host.journal.entries(), RUN, "the keeper is not asked");
}

#[tokio::test]
async fn a_container_needs_a_pod_that_is_ready() {
    let node = FakeNode::start().await;
    let unknown = "0".repeat(64);
    let error = node.create(&unknown, container("app", "a")).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
    let id = node.run(pod("web")).await.unwrap();
    node.daemon.pods.store.pod(&id).unwrap().transition(PodState::stopping);
    let error = node.create(&id, container("app", "a")).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
}

/// Loads an image without layers. Returns its id.
async fn image(node: &FakeNode) -> String {
    let folder = tempfile::tempdir().unwrap();
    let config = r#"{"architecture":"amd64","os":"linux","config":{"Cmd":["/app"]},"rootfs":{"type":"layers","diff_ids":[]}}"#;
    let manifest = r#"[{"Config":"config.json","RepoTags":["r.example/app:1"],"Layers":[]}]"#;
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    std::fs::write(folder.path().join("manifest.json"), manifest).unwrap();
    let archive = folder.path().join("app.tar");
    let mut tar = std::process::Command::new("tar");
    tar.current_dir(&folder).arg("-cf").arg(&archive).args(["manifest.json", "config.json"]);
    assert!(tar.status().unwrap().success());
    node.daemon.images.load(&archive).await.unwrap()[0].id.to_string()
}

/// A daemon with a pod that is ready and an image.
struct ReadyNode {
    node: FakeNode,
    pod: String,
    image: String,
    /// The folders before a container is created.
    folders: Vec<String>,
}

impl ReadyNode {
    async fn start() -> Self {
        let node = FakeNode::start().await;
        let (pod, image) = (node.run(pod("web")).await.unwrap(), image(&node).await);
        let folders = node.folders();
        Self { node, pod, image, folders }
    }

    async fn create(&self) -> Result<String, Status> {
        self.node.create(&self.pod, container("app", &self.image)).await
    }

    /// Returns the effects on the host after those of RunPodSandbox.
    fn effects(&self) -> Vec<&'static str> {
        self.node.host.journal.entries().split_off(RUN.len())
    }

    fn assert_nothing_is_left(&self, case: &str) {
        assert_eq!(self.node.folders(), self.folders, "{case}: the container's folder is gone");
        assert_eq!(self.node.daemon.images.writable_layers(), Vec::<String>::new(), "{case}");
        assert!(self.node.daemon.pods.store.containers().is_empty(), "{case}");
    }
}

#[tokio::test]
async fn a_container_is_created_and_recorded_when_its_first_process_waits() {
    let ready = ReadyNode::start().await;
    let id = ready.create().await.unwrap();
    assert_eq!(ready.effects(), CREATE);
    let pods = &ready.node.daemon.pods;
    let created = pods.store.container(&id).unwrap();
    assert_eq!(created.state(), ContainerState::Created { pid: 1 });
    assert_eq!(ready.node.daemon.images.writable_layers(), [id.as_str()]);
    let spec = std::fs::read_to_string(created.folder().join("config.json")).unwrap();
    assert!(spec.contains("/app"), "the command of the image: {spec}");
    let record = std::fs::read_to_string(created.folder().join("container.json")).unwrap();
    assert!(record.contains(&id) && record.contains("Created"), "{record}");
}

#[tokio::test]
async fn a_failed_step_of_a_container_undoes_itself_and_those_before_it() {
    for (failing, undo) in [
        ("mount root", &[][..]),
        ("create cgroup", &["release cgroup"]),
        ("Create", &["Forget", "release cgroup"]),
    ] {
        let ready = ReadyNode::start().await;
        ready.node.host.fail(failing);
        let error = ready.create().await.unwrap_err();
        assert!(error.message().contains(&format!("no {failing} today")), "{error}");
        let done = CREATE.iter().position(|step| *step == failing).unwrap();
        assert_eq!(ready.effects(), [&CREATE[..=done], undo].concat(), "{failing}");
        ready.assert_nothing_is_left(failing);
    }
}

#[tokio::test]
async fn an_undo_of_a_container_that_fails_is_reported_and_does_not_stop_the_others() {
    let ready = ReadyNode::start().await;
    for effect in ["Create", "Forget", "release cgroup"] {
        ready.node.host.fail(effect);
    }
    let error = ready.create().await.unwrap_err();
    for effect in ["Create", "Forget", "release cgroup"] {
        assert!(error.message().contains(&format!("no {effect} today")), "{error}");
    }
    ready.assert_nothing_is_left("failed undo");
}

#[tokio::test]
async fn the_name_of_a_container_is_taken_until_its_creation_fails() {
    let ready = ReadyNode::start().await;
    ready.node.host.fail("Create");
    ready.create().await.unwrap_err();
    ready.node.host.repair("Create");
    let id = ready.create().await.unwrap();
    let error = ready.create().await.unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists, "{error}");
    assert!(error.message().contains(&id), "{error}");
}

#[tokio::test]
async fn a_pod_that_stops_during_a_creation_gets_no_container() {
    let ready = ReadyNode::start().await;
    let pod = ready.node.daemon.pods.store.pod(&ready.pod).unwrap();
    ready.node.host.on("create cgroup", move || pod.transition(PodState::stopping));
    let error = ready.create().await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert_eq!(ready.effects(), ["mount root", "create cgroup", "release cgroup"], "the keeper is not asked");
    ready.assert_nothing_is_left("stopped pod");
}
