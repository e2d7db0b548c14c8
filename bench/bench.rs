//! One run: its image, its folder, its label, the pods that it makes, and what it has found so far.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use berth_proto::v1::security_profile::ProfileType;
use berth_proto::v1::{
    CgroupDriver, ContainerConfig, ContainerMetadata, CreateContainerRequest, CreateContainerResponse,
    IdMapping, ImageSpec, ImageStatusRequest, LinuxContainerConfig, LinuxContainerSecurityContext,
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, Mount, NamespaceMode, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata, PortMapping, PullImageRequest, RunPodSandboxRequest,
    RunPodSandboxResponse, RuntimeConfigRequest, SecurityProfile, UserNamespace, VersionRequest,
    VersionResponse,
};
use tokio::net::UnixStream;

use crate::client::{Client, Timed, timed, timed_within};
use crate::error::BenchError;
use crate::figures::{Distribution, Figure, Samples};
use crate::measure::PULL_DEADLINE;
use crate::options::Options;

/// The label of every pod of a run: by it they are found and removed.
pub(crate) const LABEL: &str = "berth-bench";

/// What runs in the containers. The number makes it stand out among the processes of a host.
pub(crate) const WORKLOAD: [&str; 2] = ["sleep", "86399"];

/// One run.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) options: Options,
    pub(crate) client: Client,
    pub(crate) version: VersionResponse,
    /// The daemon's process; none if it is in another pid namespace.
    pub(crate) daemon: Option<u32>,
    /// Names this run.
    pub(crate) run: String,
    /// Logs and other files; removed when this is dropped.
    pub(crate) folder: tempfile::TempDir,
    /// What containers are made from, by its id, as the kubelet does.
    image: String,
    /// It was not there before: it goes again.
    pub(crate) image_is_ours: bool,
    pub(crate) cgroup_parent: String,
    next: AtomicU32,
    found: Mutex<Found>,
}

/// What was found so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    pub(crate) distributions: Vec<Distribution>,
    pub(crate) figures: Vec<Figure>,
    problems: Vec<String>,
}

/// What keeps a pod's processes apart from the host beyond namespaces and cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isolation {
    /// Nothing.
    Plain,
    /// The runtime's own seccomp profile.
    Seccomp,
    /// Users of the pod's own.
    Users,
}

/// A pod of the run, as later calls need it.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) id: String,
    config: PodSandboxConfig,
}

/// What a container does that is not the workload.
#[derive(Debug, Default)]
pub(crate) struct Task {
    pub(crate) command: Vec<String>,
    pub(crate) mounts: Vec<Mount>,
}

impl Bench {
    /// Connects, and gets the image if it is not there.
    pub(crate) async fn prepare(options: Options) -> Result<Self, BenchError> {
        let client = Client::connect(&options.socket).await?;
        let version =
            timed("Version", client.runtime.clone().version(VersionRequest::default())).await?.answer;
        let file = |action, path: PathBuf| move |source| BenchError::File { action, path, source };
        let peer = UnixStream::connect(&options.socket).await.and_then(|stream| stream.peer_cred());
        let peer = peer.map_err(file("ask who listens on", options.socket.clone()))?;
        let listener = peer.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0);
        let folder = tempfile::Builder::new().prefix("berth-bench-").tempdir_in(&options.folder);
        let folder = folder.map_err(file("make a folder in", options.folder.clone()))?;
        let (image, image_is_ours) = get_image(&client, &options.image).await?;
        let run = format!("b{}", std::process::id());
        Ok(Self {
            cgroup_parent: cgroup_parent(&client, &run).await,
            daemon: options.daemon_pid.or(listener),
            client,
            version,
            run,
            folder,
            image,
            image_is_ours,
            next: AtomicU32::new(0),
            found: Mutex::default(),
            options,
        })
    }

    /// RunPodSandbox.
    pub(crate) async fn run_pod(&self, network: NamespaceMode) -> Result<Timed<Pod>, BenchError> {
        self.run_isolated_pod(network, Isolation::Plain).await
    }

    /// RunPodSandbox of a pod to which a port of the host leads.
    pub(crate) async fn run_pod_with_port(&self, host_port: u16) -> Result<Timed<Pod>, BenchError> {
        let mut config = self.pod_config(NamespaceMode::Pod);
        let port = PortMapping { container_port: 80, host_port: host_port.into(), ..Default::default() };
        config.port_mappings.push(port);
        self.run(config).await
    }

    /// RunPodSandbox; the containers of the pod are isolated alike.
    pub(crate) async fn run_isolated_pod(
        &self,
        network: NamespaceMode,
        isolation: Isolation,
    ) -> Result<Timed<Pod>, BenchError> {
        let mut config = self.pod_config(network);
        if let Some(linux) = &mut config.linux {
            linux.security_context = Some(isolated(network, isolation));
        }
        self.run(config).await
    }

    async fn run(&self, config: PodSandboxConfig) -> Result<Timed<Pod>, BenchError> {
        let request = RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        let Timed { answer: RunPodSandboxResponse { pod_sandbox_id }, took } =
            timed("RunPodSandbox", self.client.runtime.clone().run_pod_sandbox(request)).await?;
        Ok(Timed { answer: Pod { id: pod_sandbox_id, config }, took })
    }

    /// CreateContainer; the answer is the container's id.
    pub(crate) async fn create_container(
        &self,
        pod: &Pod,
        task: Option<Task>,
    ) -> Result<Timed<String>, BenchError> {
        let task = task.unwrap_or_else(|| Task {
            command: WORKLOAD.iter().map(|word| (*word).to_owned()).collect(),
            mounts: Vec::new(),
        });
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(self.container_config(pod, task)),
            sandbox_config: Some(pod.config.clone()),
        };
        let Timed { answer: CreateContainerResponse { container_id }, took } =
            timed("CreateContainer", self.client.runtime.clone().create_container(request)).await?;
        Ok(Timed { answer: container_id, took })
    }

    fn pod_config(&self, network: NamespaceMode) -> PodSandboxConfig {
        let name = format!("{}-{}", self.run, self.next.fetch_add(1, Ordering::Relaxed));
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.clone(),
                uid: name.clone(),
                namespace: LABEL.to_owned(),
                attempt: 0,
            }),
            hostname: if network == NamespaceMode::Node { String::new() } else { name.clone() },
            log_directory: self.folder.path().join(&name).display().to_string(),
            labels: [(LABEL.to_owned(), self.run.clone())].into(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup_parent.clone(),
                security_context: Some(isolated(network, Isolation::Plain)),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn container_config(&self, pod: &Pod, task: Task) -> ContainerConfig {
        let linux = pod.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: "main".to_owned(), attempt: 0 }),
            image: Some(ImageSpec { image: self.image.clone(), ..Default::default() }),
            command: task.command,
            mounts: task.mounts,
            labels: pod.config.labels.clone(),
            log_path: LOG_FILE.to_owned(),
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: linux.and_then(|context| context.namespace_options.clone()),
                    seccomp: linux.and_then(|context| context.seccomp.clone()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Keeps what was measured.
    pub(crate) fn add(&self, samples: Samples) {
        self.lock().distributions.extend(samples.distributions());
    }

    /// Keeps a number.
    pub(crate) fn add_figure(&self, name: impl Into<String>, value: f64, unit: &'static str) {
        self.lock().figures.push(Figure { name: name.into(), value, unit });
    }

    /// Keeps what went wrong with one part, so that the others still run.
    pub(crate) fn add_problem(&self, problem: String) {
        self.lock().problems.push(problem);
    }

    pub(crate) fn found(&self) -> Found {
        self.lock().clone()
    }

    pub(crate) fn take_problems(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().problems)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The log's file name in a pod's log folder.
const LOG_FILE: &str = "main.log";

impl Pod {
    /// The log of its container.
    pub(crate) fn log_file(&self) -> PathBuf {
        PathBuf::from(&self.config.log_directory).join(LOG_FILE)
    }
}

/// As the kubelet sets them for a pod that says nothing: each container has its own pid namespace.
fn isolated(network: NamespaceMode, isolation: Isolation) -> LinuxSandboxSecurityContext {
    let mut options = namespaces(network);
    if isolation == Isolation::Users {
        let ids = || vec![IdMapping { container_id: 0, host_id: 1 << 20, length: 1 << 16 }];
        let users = UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids(), gids: ids() };
        options.userns_options = Some(users);
    }
    let profile_type = match isolation {
        Isolation::Seccomp => ProfileType::RuntimeDefault,
        Isolation::Plain | Isolation::Users => ProfileType::Unconfined,
    };
    let seccomp = SecurityProfile { profile_type: profile_type.into(), ..Default::default() };
    LinuxSandboxSecurityContext {
        namespace_options: Some(options),
        seccomp: Some(seccomp),
        ..Default::default()
    }
}

fn namespaces(network: NamespaceMode) -> NamespaceOption {
    NamespaceOption {
        network: network.into(),
        pid: NamespaceMode::Container.into(),
        ipc: NamespaceMode::Pod.into(),
        ..Default::default()
    }
}

/// The image's id, and whether it had to be pulled.
async fn get_image(client: &Client, reference: &str) -> Result<(String, bool), BenchError> {
    let spec = || Some(ImageSpec { image: reference.to_owned(), ..Default::default() });
    let status = ImageStatusRequest { image: spec(), verbose: false };
    let there = timed("ImageStatus", client.images.clone().image_status(status)).await?.answer.image;
    if let Some(image) = there {
        return Ok((image.id, false));
    }
    let pull = PullImageRequest { image: spec(), ..Default::default() };
    let pulled = timed_within("PullImage", PULL_DEADLINE, client.images.clone().pull_image(pull)).await?;
    Ok((pulled.answer.image_ref, true))
}

/// A parent cgroup of the run's own, named as the runtime's driver wants it. A runtime that cannot be asked (RuntimeConfig
/// is of Kubernetes 1.28) takes paths.
async fn cgroup_parent(client: &Client, run: &str) -> String {
    let answer = client.runtime.clone().runtime_config(RuntimeConfigRequest::default()).await;
    let driver = answer.ok().and_then(|answer| answer.into_inner().linux).map(|linux| linux.cgroup_driver());
    match driver {
        // A dash would make it a slice in a slice: systemd.slice(5).
        Some(CgroupDriver::Systemd) => format!("berthbench_{run}.slice"),
        _ => format!("/berth-bench-{run}"),
    }
}
