//! CreateContainer: resolves the image, creates the writable layer, translates the config, compiles the plan, and has
//! the keeper run the first process up to its exec. Each step pushes its undo.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_image::{Digest, Image, WritableLayer};
use berth_proto::v1::{ContainerConfig, ImageSpec};
use berth_runtime::cgroup::CgroupPath;
use berth_runtime::client::Placeholder;
use berth_runtime::plan::HookKind;
use berth_runtime::wire::{Call, Failure, Outcome};
use tonic::Status;

use super::adjusted;
use super::assemble::{self, Assembled, Draft};
use super::hooks;
use super::log;
use super::oom_kills;
use super::out_of_memory;
use super::restore::{self, Restore, RestoreSource};
use crate::blocking::blocking;
use crate::cgroups::Cgroups;
use crate::daemon::{Daemon, Shared};
use crate::descriptors;
use crate::error::CriError;
use crate::handlers;
use crate::ids::ContainerId;
use crate::images;
use crate::keeper::{KeeperClient, KeeperError};
use crate::nri::adaptation::NriCreation;
use crate::nri::events::Notice;
use crate::oci::resources;
use crate::oci::{classes, stop_signal, validate};
use crate::operation::{OperationKey, Progress};
use crate::store::container::RecordedUser;
use crate::store::{Container, ContainerName, ContainerRecord, ContainerState, Pod, file};
use crate::systemd::{self, ShutdownOrder};
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
                self.progress.step("NRI plugins");
                self.daemon.pods.nri.after(Notice::PostCreate, &container).await;
                Ok(self.id.as_str().to_owned())
            }
            Err(error) => {
                self.progress.step("undo");
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
        self.progress.step("image");
        let source = self.source()?;
        let (image, restore) = self.receive_checkpoint(source).await?;
        let volumes = self.image_volumes().await?;
        self.progress.step("signature policy");
        self.check_policy(&image, restore.as_ref()).await?;
        let container = self.write_intent(&image, restore.is_some()).await?;
        if restore.is_some() && container.runtime().is_some() {
            let why = "the OCI runtime of its pod's handler cannot restore a checkpoint";
            return Err(CriError::precondition(format!("container {}", self.id), why));
        }
        self.progress.step("writable layer");
        let layer = self.make_layer(&image, &volumes).await?;
        if let Some(restore) = &restore {
            restore.fill_layer(&self.daemon.images, self.id.as_str()).await?;
        }
        self.progress.step("root filesystem and spec");
        let layer = Arc::new(layer);
        let draft = self.draft(&container, layer.clone(), pause_pid).await?;
        self.progress.step("NRI plugins");
        let draft = self.call_nri(&container, draft).await?;
        self.progress.step("scope");
        let placeholder = self.start_scope(&container, &draft).await?;
        self.progress.step("cgroup and plan");
        let devices = draft.net_devices();
        let mut assembled = self.assemble(&container, layer, draft).await?;
        self.move_devices(devices).await?;
        self.progress.step("log file");
        if let Some(log) = log::make(&self.pod, &self.config).await? {
            assembled.add_log(log);
        }
        if let Some(restore) = restore {
            assembled = restore.plan(&self.daemon.cgroups, &container, assembled).await?;
        }
        self.progress.step("first process");
        self.ready_pod()?;
        let pid = self.create_process(&link, &container, assembled).await?;
        systemd::release(placeholder).await;
        self.progress.step("record");
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
                tracing::warn!(annotation, class, "the annotation has no effect: berth has no such classes");
            }
        });
    }

    /// Where the files of the container come from.
    fn source(&self) -> Result<RestoreSource, CriError> {
        match self.archive.clone().or_else(|| restore::archive(&self.config)) {
            Some(path) => Ok(RestoreSource::Archive(path)),
            None => self.image().map(RestoreSource::Image),
        }
    }

    /// Returns the image of the container. If the image of the request is a checkpoint, it is copied first, and the image is
    /// that of the checkpointed container.
    async fn receive_checkpoint(
        &mut self,
        source: RestoreSource,
    ) -> Result<(Arc<Image>, Option<Restore>), CriError> {
        if let RestoreSource::Image(image) = &source {
            if !image.checkpoint {
                return Ok((image.clone(), None));
            }
            self.check_policy(image, None).await?;
        }
        self.progress.step("checkpoint");
        let folder = self.daemon.pods.folders.container(&self.id);
        self.undo_folder(&folder);
        let criu = self.daemon.config.criu_path.clone();
        let images = &self.daemon.images;
        let restore = restore::receive(images, criu, &self.pod, &self.config, source, &folder).await?;
        if self.archive.is_some() && self.image()?.id != restore.image.id {
            let why = format!("its image is not that of the checkpoint, {}", restore.image_name);
            return Err(CriError::precondition(format!("container {}", self.id), why));
        }
        Ok((restore.image.clone(), Some(restore)))
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

    /// Resolves the image of the request. Since 1.27 the kubelet sends the id that PullImage returned.
    fn image(&self) -> Result<Arc<Image>, CriError> {
        let spec = self.config.image.clone().unwrap_or_default();
        let name = if spec.image_ref.is_empty() { &spec.image } else { &spec.image_ref };
        self.daemon
            .images
            .resolve(name)
            .or_else(|| self.daemon.images.resolve(&spec.image))
            .ok_or_else(|| CriError::not_found("image", &spec.image))
    }

    /// Checks the signature policy for the name in the pod, or else for the name in the request.
    async fn check_policy(&mut self, image: &Image, restore: Option<&Restore>) -> Result<(), CriError> {
        let spec = self.config.image.clone().unwrap_or_default();
        let checkpointed = restore.filter(|_| self.archive.is_none());
        let name = checkpointed.map_or_else(|| name_of(&spec), |restore| &restore.image_name);
        Ok(self.daemon.images.check_policy(image, name).await?)
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

    /// Resolves the image volumes. Their ids are kept for the status: the kubelet reports their digests.
    async fn image_volumes(&mut self) -> Result<Vec<Digest>, CriError> {
        let mut digests = Vec::new();
        for mount in &mut self.config.mounts {
            let Some(spec) = &mut mount.image else { continue };
            let image = self.daemon.images.resolve(&spec.image).ok_or_else(|| {
                let operation = format!("mount the image volume of mounts[{}]", mount.container_path);
                let why = format!("{}: image {:?} not found", assemble::IMAGE_VOLUME_FAILED, spec.image);
                CriError::failed(operation, why)
            })?;
            self.daemon.images.check_policy(&image, name_of(spec)).await?;
            // As PullImage returned it: the kubelet compares the two.
            spec.image_ref = image.id.to_string();
            digests.push(image.id.clone());
        }
        Ok(digests)
    }

    async fn make_layer(
        &mut self,
        image: &Arc<Image>,
        volumes: &[Digest],
    ) -> Result<WritableLayer, CriError> {
        let (images, id) = (self.daemon.images.clone(), self.id.clone());
        self.undo.push("remove the writable layer", async move {
            images.remove_layer(id.as_str()).await.map_err(|error| error.to_string())
        });
        Ok(self.daemon.images.create_layer(self.id.as_str(), &image.id, volumes).await?)
    }

    /// Starts the scope of the systemd driver. A scope needs a process from its start, the placeholder.
    async fn start_scope(
        &mut self,
        container: &Container,
        draft: &Draft,
    ) -> Result<Option<Placeholder>, CriError> {
        let (cgroups, cgroup) = (self.daemon.cgroups.clone(), container.with(|record| record.cgroup.clone()));
        let recorded = cgroup.clone();
        self.undo.push("remove the cgroup", async move {
            cgroups.release(recorded).await.map_err(|error| error.to_string())
        });
        let mut limits = draft.limits();
        // systemd does not manage the devices.
        limits.set_devices(None);
        let annotation = |key: &str| self.config.annotations.get(key).map(String::as_str);
        let order = ShutdownOrder::of_container(self.pod.id.as_str(), annotation);
        self.daemon.cgroups.start_scope(&CgroupPath::from_recorded(&cgroup)?, &limits, &order).await
    }

    async fn draft(
        &mut self,
        container: &Arc<Container>,
        layer: Arc<WritableLayer>,
        pause_pid: i32,
    ) -> Result<Draft, CriError> {
        let (daemon, pod, container) = (self.daemon.clone(), self.pod.clone(), container.clone());
        blocking(move || assemble::draft(&daemon, &pod, &container, &layer, pause_pid)).await
    }

    /// Has NRI plugins change the draft.
    async fn call_nri(&mut self, container: &Arc<Container>, mut draft: Draft) -> Result<Draft, CriError> {
        let nri = self.daemon.pods.nri.clone();
        let creation = self.nri.insert(nri.plugins().begin(self.id.as_str()));
        if !creation.is_announced() {
            return Ok(draft);
        }
        let (undo_nri, undo_container) = (nri.clone(), container.clone());
        self.undo.push("notify NRI plugins", async move {
            undo_nri.undo_container(&undo_container).await;
            Ok(())
        });
        let changes = nri.create(&self.pod, container, draft.spec()).await?;
        let (others, evictions) = (changes.others.updates(), changes.others.evictions);
        if let Some(failed) = nri.plugins().apply(others, evictions).await.into_iter().next() {
            let what = format!("update container {} for an NRI plugin", failed.update.container_id);
            return Err(CriError::failed(what, failed.error));
        }
        let (cgroups, folders, changed) =
            (self.daemon.cgroups.clone(), self.daemon.config.cdi_spec_dirs.clone(), container.clone());
        blocking(move || {
            adjusted::adjust(&cgroups, &folders, &changed, &mut draft, &changes.adjustment)?;
            Ok::<_, CriError>(draft)
        })
        .await
    }

    /// Moves network devices of the host to the pod's namespace, which NRI plugins can request.
    async fn move_devices(&mut self, devices: Vec<(String, String)>) -> Result<(), CriError> {
        for (device, name) in devices {
            let netns = self.pod.netns().ok_or_else(|| {
                CriError::failed(format!("move network device {device}"), "the pod is in the host's network")
            })?;
            let network = self.daemon.network.network.clone();
            network.move_device(&device, netns.as_fd(), &name).await?;
            self.undo.push("return a network device", async move {
                let returned = network.return_device(&device, netns.as_fd(), &name).await;
                returned.map_err(|error| error.to_string())
            });
        }
        Ok(())
    }

    async fn assemble(
        &mut self,
        container: &Arc<Container>,
        layer: Arc<WritableLayer>,
        draft: Draft,
    ) -> Result<Assembled, CriError> {
        let (daemon, pod, container) = (self.daemon.clone(), self.pod.clone(), container.clone());
        blocking(move || {
            let Daemon { filters, cgroups, pods, .. } = &*daemon;
            assemble::build(filters, cgroups, &pods.store, &pod, &container, &layer, draft)
        })
        .await
    }

    async fn create_process(
        &mut self,
        link: &KeeperClient,
        container: &Container,
        assembled: Assembled,
    ) -> Result<i32, CriError> {
        self.undo_runtime(container, assembled.runtime_hooks);
        let hooks = assembled.plan.hooks.as_ref();
        let poststop = hooks.map_or(Duration::ZERO, |hooks| hooks.longest(&[HookKind::Poststop]));
        let (forget, id) = (link.clone(), self.id.clone());
        self.undo.push("end the first process", async move {
            // The `poststop` hooks of a container whose creation has failed run before the answer.
            let call = Call::Forget { container: id.as_str().to_owned() };
            match forget.call_with(call, Vec::new(), poststop).await.map(drop) {
                Ok(()) | Err(KeeperError::Gone | KeeperError::Failure(Failure::NotFound { .. })) => Ok(()),
                Err(error) => Err(error.to_string()),
            }
        });
        let plan = Box::new(assembled.plan.clone());
        let folder = container.folder().display().to_string();
        let more = match container.runtime() {
            // The runtime runs the hooks.
            Some(_) => assembled.runtime_hooks,
            None => hooks.map_or(Duration::ZERO, |hooks| hooks.longest(&hooks::OF_CREATE)),
        };
        let call = Call::Create { container: self.id.as_str().to_owned(), folder, plan };
        match link.call_with(call, assembled.descriptors, more).await {
            Ok((Outcome::Created { pid }, _)) => Ok(pid),
            Ok((other, _)) => Err(KeeperError::Unexpected(format!("{other:?}")).into()),
            Err(KeeperError::Failure(Failure::Init(failure))) => {
                let why = berth_runtime::compile::explain(&failure, &assembled.plan);
                let hint = out_of_memory::hint(&self.daemon.cgroups, container, &failure).await;
                Err(CriError::failed(format!("create container {}", self.id), format!("{why}{hint}")))
            }
            Err(KeeperError::Failure(Failure::State { .. })) if self.ready_pod().is_err() => {
                Err(pod_not_ready(&self.pod))
            }
            Err(KeeperError::NoAnswer { timeout, keeper, .. }) => Err(CriError::deadline(format!(
                "failed to create container {}: its mounts are not ready after {} s ({keeper})",
                self.id,
                timeout.as_secs()
            ))),
            Err(error) => Err(error.into()),
        }
    }
}

/// Returns the name that the policy checks: the name in the pod, else the name in the request.
fn name_of(spec: &ImageSpec) -> &str {
    match spec.user_specified_image.as_str() {
        "" => &spec.image,
        name_in_pod => name_in_pod,
    }
}

fn reference_of(image: &Image) -> String {
    image.repo_digests.first().cloned().unwrap_or_else(|| image.id.to_string())
}

fn pod_not_ready(pod: &Pod) -> CriError {
    CriError::precondition(format!("pod sandbox {}", pod.id), "it is not ready")
}
