//! CreateContainer: resolves the image, creates the writable layer, translates the config, compiles the plan, and has
//! the keeper run the first process up to its exec. Each step pushes its undo.
//!
//! * [`image`]: the image, or a checkpoint in its place, and the writable layer
//! * [`process`]: the spec, the plan and the first process
//! * this file: the order of the steps, and the record

mod image;
mod process;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_image::Image;
use berth_proto::v1::ContainerConfig;
use tonic::Status;

use super::log;
use super::oom_kills;
use crate::blocking::blocking;
use crate::cgroups::Cgroups;
use crate::daemon::Shared;
use crate::descriptors;
use crate::error::CriError;
use crate::handlers;
use crate::ids::ContainerId;
use crate::images;
use crate::nri::adaptation::NriCreation;
use crate::nri::events::Notice;
use crate::oci::resources;
use crate::oci::{classes, stop_signal, validate};
use crate::operation::{CreateStep, OperationKey, Progress};
use crate::store::container::RecordedUser;
use crate::store::{Container, ContainerName, ContainerRecord, ContainerState, Pod, file};
use crate::systemd;
use crate::undo::UndoStack;

/// Creates a container, or joins the call that is creating it. With an archive of a pod's checkpoint, its files and processes
/// are those of the archive; the image of the request must be the same.
///
/// # Errors
/// `InvalidArgument`, `NotFound` (pod, image), `AlreadyExists` with the holder's id, `FailedPrecondition` if the pod
/// is not ready, or the step that failed with its object.
pub async fn create_container(
    daemon: &Shared,
    pod: &str,
    config: ContainerConfig,
    archive: Option<PathBuf>,
) -> Result<String, Status> {
    check(&daemon.config.runtime_handlers, &daemon.cgroups, &config)?;
    let permit = descriptors::reserve("create a container")?;
    let pod = daemon.pods.store.pod(pod)?;
    let name = ContainerName::from(&config.metadata.clone().unwrap_or_default());
    let daemon = daemon.clone();
    let operations = daemon.pods.operations.clone();
    let span = tracing::Span::current();
    span.record("pod", pod.id.as_str());
    operations
        .join(OperationKey::Create(pod.id.clone(), name.clone()), move |progress| async move {
            let _permit = permit;
            if let Some(holder) = daemon.pods.store.container_by_name(&pod.id, &name) {
                let what = format!("container {name} of pod sandbox {}", pod.id);
                return Err(CriError::already_exists(what, holder.as_str()).into());
            }
            let id = ContainerId::random();
            span.record("container", id.as_str());
            progress.creates(id.as_str());
            let _making = pod.begin_creating(id.clone());
            let undo = UndoStack::default();
            let creation = ContainerBuilder { daemon, pod, id, config, archive, progress, undo, nri: None };
            creation.run().await.map_err(Status::from)
        })
        .await
}

/// Checks the parts of a request that are invalid in any state of the node.
fn check(handlers: &[String], cgroups: &Cgroups, config: &ContainerConfig) -> Result<(), CriError> {
    validate::container(config)?;
    if let Some(resources) = config.linux.as_ref().and_then(|linux| linux.resources.as_ref()) {
        resources::check(resources, cgroups.is_v2())?;
    }
    let images = config.mounts.iter().filter_map(|mount| mount.image.as_ref());
    for image in images.chain(&config.image) {
        validate::runtime_handler(handlers, "image.runtime_handler", &image.runtime_handler)?;
    }
    Ok(())
}

struct ContainerBuilder {
    daemon: Shared,
    pod: Arc<Pod>,
    id: ContainerId,
    config: ContainerConfig,
    /// The archive of a pod's checkpoint.
    archive: Option<PathBuf>,
    progress: Progress,
    undo: UndoStack,
    nri: Option<NriCreation>,
}

impl ContainerBuilder {
    async fn run(mut self) -> Result<String, CriError> {
        let result = self.run_steps().await.and_then(|container| {
            // StopPodSandbox waits for this operation and kills the containers in the store: none may be added after
            // that.
            self.ready_pod()?;
            // The same holds for an NRI plugin that connects.
            self.nri.as_ref().map_or(Ok(()), NriCreation::check)?;
            Ok(container)
        });
        match result {
            Ok(container) => {
                self.daemon.pods.store.insert_container(container.clone());
                self.nri = None;
                oom_kills::watch(self.daemon.cgroups.clone(), container.clone());
                self.daemon.pods.events.container(&container);
                self.daemon.pods.nri.watch(&container);
                self.progress.step(CreateStep::Created);
                self.daemon.pods.nri.after(Notice::PostCreate, &container).await;
                Ok(self.id.as_str().to_owned())
            }
            Err(error) => {
                self.progress.step(CreateStep::Undo);
                // A plugin that connects from now on does not get the container.
                self.nri = None;
                match self.undo.run().await {
                    Ok(()) => Err(error),
                    Err(undo_errors) => Err(error.with_undo_errors(&undo_errors)),
                }
            }
        }
    }

    async fn run_steps(&mut self) -> Result<Arc<Container>, CriError> {
        let pause_pid = self.ready_pod()?;
        let link = self.pod.link().ok_or_else(|| pod_not_ready(&self.pod))?;
        self.warn_about_classes();
        self.progress.step(CreateStep::Image);
        let source = self.source()?;
        let (image, restore) = self.receive_checkpoint(source).await?;
        let volumes = self.image_volumes().await?;
        self.progress.step(CreateStep::Policy);
        self.check_policy(&image, restore.as_ref()).await?;
        let container = self.write_intent(&image, restore.is_some()).await?;
        if restore.is_some() && container.runtime().is_some() {
            let why = "the OCI runtime of its pod's handler cannot restore a checkpoint";
            return Err(CriError::precondition(format!("container {}", self.id), why));
        }
        self.progress.step(CreateStep::Layer);
        let layer = self.make_layer(&image, &volumes).await?;
        if let Some(restore) = &restore {
            restore.fill_layer(&self.daemon.images, self.id.as_str()).await?;
        }
        self.progress.step(CreateStep::Spec);
        let layer = Arc::new(layer);
        let draft = self.draft(&container, layer.clone(), pause_pid).await?;
        self.progress.step(CreateStep::Plugins);
        let draft = self.call_nri(&container, draft).await?;
        self.progress.step(CreateStep::Scope);
        let placeholder = self.start_scope(&container, &draft).await?;
        self.progress.step(CreateStep::Plan);
        let devices = draft.net_devices();
        let mut assembled = self.assemble(&container, layer, draft).await?;
        self.move_devices(devices).await?;
        self.progress.step(CreateStep::Log);
        if let Some(log) = log::make(&self.pod, &self.config).await? {
            assembled.add_log(log);
        }
        if let Some(restore) = restore {
            assembled = restore.plan(&self.daemon.cgroups, &container, assembled).await?;
        }
        self.progress.step(CreateStep::Process);
        self.ready_pod()?;
        let pid = self.create_process(&link, &container, assembled).await?;
        systemd::release(placeholder).await;
        self.progress.step(CreateStep::Record);
        let created = container.clone();
        blocking(move || created.intend(|record| record.state = record.state.created(pid))).await?;
        Ok(container)
    }

    fn ready_pod(&self) -> Result<i32, CriError> {
        self.pod.state().pause().ok_or_else(|| pod_not_ready(&self.pod))
    }

    fn warn_about_classes(&self) {
        self.pod.with(|record| {
            for (annotation, class) in classes(&self.config, &record.config) {
                tracing::warn!(
                    annotation,
                    class,
                    "ignored an annotation: classes of block I/O and RDT are not supported"
                );
            }
        });
    }

    /// Has the OCI runtime forget the container, after its first process has ended.
    fn undo_runtime(&mut self, container: &Container, poststop: Duration) {
        let Some(runtime) = container.runtime() else { return };
        let id = self.id.clone();
        self.undo.push("delete the container of the OCI runtime", async move {
            handlers::calls::delete(&runtime, &id, poststop).await.map_err(|error| error.to_string())
        });
    }

    fn undo_folder(&mut self, folder: &Path) {
        let gone = folder.to_owned();
        self.undo.push("remove the container's folder", async move {
            blocking(move || file::remove_folder(&gone)).await.map_err(|error| error.to_string())
        });
    }

    async fn write_intent(&mut self, image: &Image, restores: bool) -> Result<Arc<Container>, CriError> {
        let folder = self.daemon.pods.folders.container(&self.id);
        let pod_cgroup = self.pod.with(|record| record.cgroup.clone());
        let cgroup = self.daemon.cgroups.path_of_container(&pod_cgroup, self.id.as_str())?;
        let record = ContainerRecord {
            id: self.id.clone(),
            pod: self.pod.id.clone(),
            config: self.config.clone(),
            image_id: image.id.to_string(),
            image_ref: reference_of(image),
            created_at: crate::clock::now(),
            boot_id: self.daemon.host.boot_id.clone(),
            log_path: self.log_path(),
            cgroup: cgroup.to_string(),
            stop_signal: stop_signal(&self.config, &image.config)?,
            user: RecordedUser::default(),
            resources: None,
            update_annotations: BTreeMap::new(),
            restores,
            runtime: self.pod.with(|pod| handlers::runtime_of(&self.daemon.config, &pod.runtime_handler)),
            image: Some(images::shown(&self.config.image.clone().unwrap_or_default(), image)),
            state: ContainerState::Creating,
        };
        let container = Arc::new(Container::new(record, folder.clone(), self.daemon.pods.records.clone()));
        if !restores {
            self.undo_folder(&folder);
        }
        let undone = container.clone();
        self.undo.push("stop writing the record", async move {
            // The end of the keeper may still change the state of the container.
            undone.stop_writing_record();
            Ok(())
        });
        let written = container.clone();
        blocking(move || {
            file::make_private_folder(&folder)?;
            written.intend(|_| {})
        })
        .await?;
        Ok(container)
    }

    fn log_path(&self) -> Option<String> {
        let folder = self.pod.with(|record| record.config.log_directory.clone());
        if folder.is_empty() || self.config.log_path.is_empty() {
            return None;
        }
        Path::new(&folder).join(&self.config.log_path).to_str().map(str::to_owned)
    }
}

fn reference_of(image: &Image) -> String {
    image.repo_digests.first().cloned().unwrap_or_else(|| image.id.to_string())
}

fn pod_not_ready(pod: &Pod) -> CriError {
    CriError::precondition(format!("pod sandbox {}", pod.id), "it is not ready")
}
