//! RestorePod: creates a pod and its containers from the folder of a checkpoint. StartContainer then restores the processes of
//! each container, as for one that CreateContainer has created from an archive.

use std::path::PathBuf;
use std::sync::Arc;

use berth_proto::v1::{
    ContainerConfig, NamespaceMode, PodSandboxConfig, RestorePodRequest, RestorePodResponse,
    RestoredContainer,
};
use tonic::Status;

use super::checkpoint::reject_options;
use super::{remove, run};
use crate::blocking::blocking;
use crate::check::files::kernel_version;
use crate::checkpoint::archive::plain_path;
use crate::checkpoint::criu;
use crate::checkpoint::pod_manifest::{ManifestContainer, PodManifest, container_file};
use crate::checkpoint::shared_restore::{self, SharedRestore};
use crate::container::create::create_container;
use crate::container::restore;
use crate::daemon::Shared;
use crate::error::CriError;
use crate::oci;
use crate::operation::{OperationKey, Progress, RestorePodStep};
use crate::store::{ContainerName, Pod, PodName};

/// Restores pods.
#[derive(Debug)]
pub struct PodRestore {
    /// The daemon that gets the pod.
    pub daemon: Shared,
}

/// A request whose parts fit to each other.
#[derive(Clone)]
struct PodRequest {
    folder: PathBuf,
    config: PodSandboxConfig,
    runtime_handler: String,
    manifest: PodManifest,
    /// The containers, each with its position in the checkpoint.
    containers: Vec<(usize, ContainerConfig)>,
}

impl PodRestore {
    /// Restores a pod, or joins the call that is restoring it. A failure leaves neither the pod nor a container.
    ///
    /// # Errors
    /// `InvalidArgument` for a field, or names of containers that are not those of the checkpoint; `NotFound` for the checkpoint
    /// or an image; `FailedPrecondition` if a config does not fit to the checkpoint, which is found before anything is created,
    /// or CRIU is missing; `AlreadyExists`; the step that failed.
    pub async fn run(self, request: RestorePodRequest) -> Result<RestorePodResponse, Status> {
        let request = parse(request).await?;
        let configured = self.daemon.config.criu_path.clone();
        blocking(move || criu::find(configured.as_deref(), kernel_version())).await?;
        let name = PodName::from(&request.config.metadata.clone().unwrap_or_default());
        let pods = self.daemon.pods.clone();
        let names: Vec<ContainerName> =
            request.containers.iter().map(|(_, config)| name_of(config)).collect();
        let work = move |progress: Progress| async move { self.create(request, &progress).await };
        let id = pods.operations.join(OperationKey::RestorePod(name), work).await?;
        let pod = pods.store.pod(&id)?;
        let gone = |name: &ContainerName| CriError::not_found("container", name.name());
        let restored = names.iter().map(|name| {
            let container_id = pods.store.container_by_name(&pod.id, name).ok_or_else(|| gone(name))?;
            let container_id = container_id.as_str().to_owned();
            Ok(RestoredContainer { name: name.name().to_owned(), container_id })
        });
        let restored_containers = restored.collect::<Result<_, CriError>>()?;
        Ok(RestorePodResponse { pod_sandbox_id: id, restored_containers })
    }

    async fn create(self, request: PodRequest, progress: &Progress) -> Result<String, Status> {
        progress.step(RestorePodStep::Pod);
        let (config, handler) = (request.config.clone(), request.runtime_handler.clone());
        let id = run::run_pod_sandbox(&self.daemon, config, handler, true).await?;
        progress.creates(&id);
        let pod = self.daemon.pods.store.pod(&id)?;
        if !pod.with(|record| record.restores) {
            // A call of RunPodSandbox has created it.
            return Err(CriError::already_exists("pod sandbox", id).into());
        }
        match self.fill(&pod, request, progress).await {
            Ok(()) => Ok(id),
            Err(error) => {
                progress.step(RestorePodStep::Undo);
                match remove::remove_pod_sandbox(&self.daemon, &id).await {
                    Ok(()) => Err(error),
                    Err(left) => {
                        let text =
                            format!("{}; failed to remove the pod: {}", error.message(), left.message());
                        Err(Status::new(error.code(), text))
                    }
                }
            }
        }
    }

    /// Gives the pod what its containers shared, and creates the containers.
    async fn fill(&self, pod: &Arc<Pod>, request: PodRequest, progress: &Progress) -> Result<(), Status> {
        progress.step(RestorePodStep::Shared);
        let what = format!("restore pod sandbox {}", pod.id);
        let pause = pod.state().pause().ok_or_else(|| CriError::precondition(&what, "it is not ready"))?;
        let shared = SharedRestore {
            pause,
            cgroup: pod.with(|record| record.cgroup.clone()),
            source: request.folder.clone(),
            state: request.manifest.shared,
        };
        shared_restore::run(&shared).await.map_err(|why| CriError::failed(&what, why))?;
        progress.step(RestorePodStep::Containers);
        for (position, config) in request.containers {
            let archive = request.folder.join(container_file(position));
            create_container(&self.daemon, pod.id.as_str(), config, Some(archive)).await?;
        }
        progress.step(RestorePodStep::Record);
        let complete = pod.clone();
        blocking(move || complete.intend(|record| record.restores = false)).await?;
        Ok(())
    }
}

fn name_of(config: &ContainerConfig) -> ContainerName {
    ContainerName::from(&config.metadata.clone().unwrap_or_default())
}

/// Reads the description of the checkpoint, and compares it with the request.
async fn parse(request: RestorePodRequest) -> Result<PodRequest, CriError> {
    reject_options(&request.options)?;
    let folder = plain_path("checkpoint_path", &request.checkpoint_path)?;
    let config = request.config.ok_or_else(|| CriError::invalid("config", "is missing"))?;
    if request.container_configs.is_empty() {
        return Err(CriError::invalid("container_configs", "is empty"));
    }
    let read = folder.clone();
    let manifest = blocking(move || PodManifest::read(&read)).await?;
    let positions = manifest.positions(&request.container_configs)?;
    let containers: Vec<_> = positions.into_iter().zip(request.container_configs).collect();
    let request =
        PodRequest { folder, config, runtime_handler: request.runtime_handler, manifest, containers };
    request.check()?;
    Ok(request)
}

impl PodRequest {
    fn check(&self) -> Result<(), CriError> {
        let modes = oci::pod_modes(&self.config);
        if self.manifest.shared.ipc != (modes.ipc() != NamespaceMode::Node) {
            return Err(CriError::precondition("config", "its IPC namespace is not that of the checkpoint"));
        }
        for (position, config) in &self.containers {
            restore::check(&modes, config)?;
            let shares = oci::container_modes(config, &self.config).pid() == NamespaceMode::Pod;
            if let Some(checkpointed) = self.manifest.containers.get(*position) {
                checkpointed.check(&ManifestContainer::of(config, shares))?;
            }
        }
        Ok(())
    }
}
