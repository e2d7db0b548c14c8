//! One run: its image, folder and label, the pods that it creates, and its results.

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

use crate::client::{Client, PULL_DEADLINE, Timed, timed, timed_within};
use crate::error::BenchError;
use crate::figures::{Distribution, Figure, Samples};
use crate::options::Options;

/// The label of every pod of a run. Pods are found and removed by it.
pub(crate) const LABEL: &str = "berth-bench";

/// The command of the containers. The number distinguishes it from other processes of a host.
pub(crate) const WORKLOAD: [&str; 2] = ["sleep", "86399"];

/// One run of the benchmark.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) options: Options,
    pub(crate) client: Client,
    pub(crate) version: VersionResponse,
    /// The daemon's pid, or `None` if the daemon is in another PID namespace.
    pub(crate) daemon: Option<u32>,
    /// The name of this run.
    pub(crate) run: String,
    /// The folder for logs and other files. Drop removes it.
    pub(crate) folder: tempfile::TempDir,
    /// The id of the image of the containers. Like the kubelet, the bench creates containers by id.
    image: String,
    /// Whether this run pulled the image and has to remove it.
    pub(crate) image_is_ours: bool,
    pub(crate) cgroup_parent: String,
    next: AtomicU32,
    results: Mutex<Results>,
}

/// The results so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Results {
    pub(crate) distributions: Vec<Distribution>,
    pub(crate) figures: Vec<Figure>,
    problems: Vec<String>,
}

/// The isolation of a pod in addition to namespaces and cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isolation {
    /// No additional isolation.
    Plain,
    /// The default seccomp profile of the runtime.
    Seccomp,
    /// A user namespace for the pod.
    Users,
}

/// A pod of the run.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) id: String,
    config: PodSandboxConfig,
}

/// A command of a container other than the workload.
#[derive(Debug, Default)]
pub(crate) struct Task {
    pub(crate) command: Vec<String>,
    pub(crate) mounts: Vec<Mount>,
}

impl Bench {
    /// Connects to the runtime and pulls the image if it does not exist.
    pub(crate) async fn prepare(options: Options) -> Result<Self, BenchError> {
        let client = Client::connect(&options.socket).await?;
        let version =
            timed("Version", client.runtime.clone().version(VersionRequest::default())).await?.answer;
        let file = |action, path: PathBuf| move |source| BenchError::File { action, path, source };
        let peer = UnixStream::connect(&options.socket).await.and_then(|stream| stream.peer_cred());
        let peer = peer.map_err(file("read the peer credentials of", options.socket.clone()))?;
        let listener = peer.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0);
        let folder = tempfile::Builder::new().prefix("berth-bench-").tempdir_in(&options.folder);
        let folder = folder.map_err(file("create a folder in", options.folder.clone()))?;
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
            results: Mutex::default(),
            options,
        })
    }

    /// Calls RunPodSandbox.
    pub(crate) async fn run_pod(&self, network: NamespaceMode) -> Result<Timed<Pod>, BenchError> {
        self.run_isolated_pod(network, Isolation::Plain).await
    }

    /// Calls RunPodSandbox for a pod with a host port.
    pub(crate) async fn run_pod_with_port(&self, host_port: u16) -> Result<Timed<Pod>, BenchError> {
        let mut config = self.pod_config(NamespaceMode::Pod);
        let port = PortMapping { container_port: 80, host_port: host_port.into(), ..Default::default() };
        config.port_mappings.push(port);
        self.run(config).await
    }

    /// Calls RunPodSandbox for a pod with this isolation. Its containers get the same isolation.
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

    /// Calls CreateContainer and returns the container's id.
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

    /// Adds samples to the results.
    pub(crate) fn add(&self, samples: Samples) {
        self.lock().distributions.extend(samples.distributions());
    }

    /// Adds a number to the results.
    pub(crate) fn add_figure(&self, name: impl Into<String>, value: f64, unit: &'static str) {
        self.lock().figures.push(Figure { name: name.into(), value, unit });
    }

    /// Records the failure of one part. The other parts still run.
    pub(crate) fn add_problem(&self, problem: String) {
        self.lock().problems.push(problem);
    }

    pub(crate) fn results(&self) -> Results {
        self.lock().clone()
    }

    pub(crate) fn take_problems(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().problems)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Results> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The file name of the log in a pod's log folder.
const LOG_FILE: &str = "main.log";

impl Pod {
    /// Returns the path of the container's log.
    pub(crate) fn log_file(&self) -> PathBuf {
        PathBuf::from(&self.config.log_directory).join(LOG_FILE)
    }
}

/// Returns the security context that the kubelet sets for a pod without options: each container has its own PID
/// namespace.
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

/// Returns the image's id and whether it was pulled.
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

/// Returns a parent cgroup for this run in the form of the runtime's cgroup driver. A runtime without RuntimeConfig
/// (Kubernetes 1.28) uses paths.
async fn cgroup_parent(client: &Client, run: &str) -> String {
    let answer = client.runtime.clone().runtime_config(RuntimeConfigRequest::default()).await;
    let driver = answer.ok().and_then(|answer| answer.into_inner().linux).map(|linux| linux.cgroup_driver());
    match driver {
        // A dash would make the slice a child of another slice: systemd.slice(5).
        Some(CgroupDriver::Systemd) => format!("berthbench_{run}.slice"),
        _ => format!("/berth-bench-{run}"),
    }
}
