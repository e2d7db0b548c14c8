//! CheckpointPod: writes the state of the running containers of a pod, at one moment, to a folder. The pod goes on.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use berth_proto::v1::{CheckpointPodRequest, NamespaceMode};
use tonic::Status;

use crate::blocking::blocking;
use crate::check::files::kernel_version;
use crate::checkpoint::criu::{self, Criu};
use crate::checkpoint::dump::{self, DumpOrder};
use crate::checkpoint::metadata::CheckpointedContainer;
use crate::checkpoint::pod_folder::OutputFolder;
use crate::checkpoint::pod_manifest::{ManifestContainer, PodManifest, VERSION};
use crate::checkpoint::shared_dump::{SHARED_STATE, SharedDump};
use crate::checkpoint::work::CheckpointWork;
use crate::container::checkpoint::{self as one, CheckpointParts};
use crate::error::CriError;
use crate::oci;
use crate::operation::{CheckpointPodStep, OperationKey, Progress};
use crate::store::{Container, ContainerState, Pod, Store, file};

/// Checkpoints containers of a pod. CRIU is never interrupted: after the deadline no further container is dumped, and there
/// are no files.
///
/// # Errors
/// `NotFound`; `InvalidArgument` for an option, the folder or the list of containers; `FailedPrecondition` if a container does
/// not run, CRIU is missing or too old, the folder is not empty, or the pod has something that cannot be dumped or restored;
/// `DeadlineExceeded`.
pub async fn checkpoint_pod(
    parts: CheckpointParts,
    request: CheckpointPodRequest,
    deadline: Option<Instant>,
) -> Result<(), Status> {
    reject_options(&request.options)?;
    let output = OutputFolder::new(&request.output_path)?;
    let pod = parts.pods.store.pod(&request.pod_sandbox_id)?;
    tracing::Span::current().record("pod", pod.id.as_str());
    let containers = selected(&parts.pods.store, &pod, &request.container_ids)?;
    refuse(&pod, &containers)?;
    let configured = parts.criu.clone();
    let criu = blocking(move || criu::find(configured.as_deref(), kernel_version())).await?;
    let operations = parts.pods.operations.clone();
    let key = OperationKey::CheckpointPod(pod.id.clone(), output.path().to_owned());
    operations
        .join(key, move |progress| async move {
            let checkpoint = PodCheckpoint { parts, pod, containers, criu, output, deadline };
            checkpoint.run(&progress).await.map(|()| String::new()).map_err(Status::from)
        })
        .await
        .map(drop)
}

/// Rejects options, of which there are none.
///
/// # Errors
/// `InvalidArgument` with the name of one.
pub fn reject_options(options: &HashMap<String, String>) -> Result<(), CriError> {
    match options.keys().min() {
        Some(name) => Err(CriError::invalid("options", format!("there is no option {name:?}"))),
        None => Ok(()),
    }
}

/// Returns the containers of a request, in a fixed order: their locks are taken in it.
fn selected(store: &Store, pod: &Pod, ids: &[String]) -> Result<Vec<Arc<Container>>, CriError> {
    if ids.is_empty() {
        return Err(CriError::invalid("container_ids", "is empty"));
    }
    let mut containers = Vec::new();
    let mut seen = BTreeSet::new();
    for id in ids {
        let container = store.container(id)?;
        if container.pod != pod.id {
            return Err(CriError::invalid("container_ids", format!("{id} belongs to another pod")));
        }
        if !seen.insert(container.id.as_str().to_owned()) {
            return Err(CriError::invalid("container_ids", format!("has {id} twice")));
        }
        one::running(&container)?;
        containers.push(container);
    }
    containers.sort_by(|first, second| first.id.as_str().cmp(second.id.as_str()));
    Ok(containers)
}

/// Refuses what could not be restored.
fn refuse(pod: &Pod, containers: &[Arc<Container>]) -> Result<(), CriError> {
    if oci::userns::requested(&pod.namespaces())?.is_some() {
        let why = "a pod with a user namespace cannot be restored";
        return Err(CriError::precondition(format!("pod sandbox {}", pod.id), why));
    }
    for container in containers {
        one::refuse_other_runtime(container)?;
        let (terminal, pids) = (container.with(|record| record.config.tty), pid_mode(pod, container));
        let why = match pids {
            _ if terminal => "a container with a terminal cannot be restored",
            NamespaceMode::Node => "a container with the processes of the host cannot be restored",
            NamespaceMode::Target => "a container with the processes of another one cannot be restored",
            NamespaceMode::Pod | NamespaceMode::Container => continue,
        };
        return Err(CriError::precondition(format!("container {}", container.id), why));
    }
    Ok(())
}

fn pid_mode(pod: &Pod, container: &Container) -> NamespaceMode {
    container.with(|record| pod.with(|of_pod| oci::container_modes(&record.config, &of_pod.config).pid()))
}

struct PodCheckpoint {
    parts: CheckpointParts,
    pod: Arc<Pod>,
    containers: Vec<Arc<Container>>,
    criu: Criu,
    output: OutputFolder,
    deadline: Option<Instant>,
}

/// The work folders of the containers and of the pod.
#[derive(Clone)]
struct PodWorks {
    containers: Vec<CheckpointWork>,
    pod: CheckpointWork,
}

impl PodWorks {
    fn all(&self) -> impl Iterator<Item = &CheckpointWork> {
        self.containers.iter().chain([&self.pod])
    }

    fn remove(&self) -> Vec<String> {
        self.all().filter_map(|work| work.remove().err()).map(|error| error.to_string()).collect()
    }
}

impl PodCheckpoint {
    async fn run(self, progress: &Progress) -> Result<(), CriError> {
        let output = self.output.clone();
        blocking(move || output.check()).await?;
        // Neither a command nor an update of limits starts while the containers are frozen.
        let mut turns = Vec::new();
        for container in &self.containers {
            turns.push(container.turn.clone().write_owned().await);
        }
        in_time(self.deadline)?;
        let works = self.works();
        let new = works.clone();
        blocking(move || new.all().try_for_each(CheckpointWork::create)).await?;
        progress.step(CheckpointPodStep::Dump);
        let done = match self.dump(&works).await {
            Ok(described) => {
                drop(turns);
                progress.step(CheckpointPodStep::Archive);
                self.write(&works, described).await
            }
            Err(error) => Err(error),
        };
        let left = blocking(move || Ok::<_, CriError>(works.remove())).await.unwrap_or_default();
        match done {
            Err(error) if !left.is_empty() => Err(error.with_undo_errors(&left)),
            other => {
                // Recovery removes the folders; the checkpoint is complete.
                for error in left {
                    tracing::warn!(
                        pod = self.pod.id.as_str(),
                        error,
                        "failed to remove a work folder of a checkpoint"
                    );
                }
                other
            }
        }
    }

    fn works(&self) -> PodWorks {
        let of = |container: &Arc<Container>| CheckpointWork::of_container(container.folder());
        PodWorks {
            containers: self.containers.iter().map(of).collect(),
            pod: CheckpointWork::of_container(&self.parts.pods.folders.pod(&self.pod.id)),
        }
    }

    async fn dump(&self, works: &PodWorks) -> Result<Vec<CheckpointedContainer>, CriError> {
        let what = format!("pod sandbox {}", self.pod.id);
        let pause = self.pod.state().pause();
        let pause = pause.ok_or_else(|| CriError::precondition(&what, "it is not ready"))?;
        let mut described = Vec::new();
        let mut dumps = Vec::new();
        for (container, work) in self.containers.iter().zip(&works.containers) {
            let pid = one::running(container)?;
            let known = one::describe(container, pid).await?;
            let mut dump = one::container_dump(&self.parts, container, pid, &known.spec, work)?;
            dump.name = Some(container.with(|record| name_of(&record.config)));
            described.push(known);
            dumps.push(dump);
        }
        let order = DumpOrder {
            criu: self.criu.program.clone(),
            containers: dumps,
            shared: Some(self.shared(pause, &works.pod)),
            within: self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())),
        };
        let Err(why) = dump::run(&order).await else { return Ok(described) };
        for (container, work) in self.containers.iter().zip(&works.containers) {
            one::thaw(&self.parts.cgroups, container, work).await;
        }
        in_time(self.deadline)?;
        // An exit is reported slightly after the process has ended.
        let ended = |container: &&Arc<Container>| matches!(container.state(), ContainerState::Exited(_));
        Err(match self.containers.iter().find(ended) {
            Some(ended) => {
                CriError::precondition(format!("container {}", ended.id), "it ended during the checkpoint")
            }
            None => CriError::failed(format!("checkpoint {what}"), why),
        })
    }

    fn shared(&self, pause: i32, work: &CheckpointWork) -> SharedDump {
        let sharing = self.containers.iter().filter(|container| self.shares_pids(container));
        SharedDump {
            pause,
            work: work.path().to_owned(),
            ipc: self.pod.namespaces().ipc() != NamespaceMode::Node,
            sharing_pids: sharing.map(|container| container.with(|record| record.cgroup.clone())).collect(),
        }
    }

    fn shares_pids(&self, container: &Container) -> bool {
        pid_mode(&self.pod, container) == NamespaceMode::Pod
    }

    async fn write(&self, works: &PodWorks, described: Vec<CheckpointedContainer>) -> Result<(), CriError> {
        let containers = self.containers.iter().map(|container| {
            container.with(|record| ManifestContainer::of(&record.config, self.shares_pids(container)))
        });
        let containers = containers.collect();
        let (works, output, deadline) = (works.clone(), self.output.clone(), self.deadline);
        blocking(move || {
            for (described, work) in described.iter().zip(&works.containers) {
                described.write(work)?;
            }
            let shared = file::read(&works.pod.file(SHARED_STATE))?;
            let manifest = PodManifest { version: VERSION, containers, shared };
            output.write(&manifest, &works.containers, &works.pod, || in_time(deadline))
        })
        .await
    }
}

fn name_of(config: &berth_proto::v1::ContainerConfig) -> String {
    config.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default()
}

/// Fails if the caller has given up.
fn in_time(deadline: Option<Instant>) -> Result<(), CriError> {
    match deadline {
        Some(deadline) if Instant::now() >= deadline => {
            Err(CriError::deadline("the checkpoint was not complete in time"))
        }
        _ => Ok(()),
    }
}
