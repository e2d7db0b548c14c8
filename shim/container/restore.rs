//! CreateContainer from a checkpoint: the image of the request is the path of an archive, or an image in the store that
//! contains the files of one. The container gets the files and processes of the checkpoint; everything else is that of the
//! request.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_image::{Image, ImageStore};
use berth_proto::v1::{ContainerConfig, NamespaceOption};
use berth_runtime::plan::{FdSlot, RestorePlan};
use berth_runtime::wire::{InitFailure, Step};

use super::assemble::Assembled;
use crate::blocking::blocking;
use crate::cgroups::Cgroups;
use crate::check::files::kernel_version;
use crate::checkpoint::criu::{self, Criu};
use crate::checkpoint::received::ReceivedCheckpoint;
use crate::checkpoint::restore_order::{self, FAILURE, ORDER, RestoreOrder};
use crate::error::CriError;
use crate::oci;
use crate::store::{Container, ContainerState, Pod, file};

/// The time that a restore may take in addition to that of a start: CRIU reads the memory of the container from the disk.
pub(super) const TIME: Duration = Duration::from_secs(3600);

/// A checkpoint that a new container is restored from.
#[derive(Debug)]
pub(super) struct Restore {
    criu: Criu,
    checkpoint: ReceivedCheckpoint,
    /// The image of the checkpointed container.
    pub(super) image: Arc<Image>,
    /// Its name in the checkpoint, for the signature policy.
    pub(super) image_name: String,
}

/// Returns the path of the archive, if the image of a request is one.
pub(super) fn archive(config: &ContainerConfig) -> Option<PathBuf> {
    let image = config.image.as_ref()?;
    image.image.starts_with('/').then(|| image.image.clone().into())
}

/// The source of a container's files.
#[derive(Debug)]
pub(super) enum RestoreSource {
    /// The archive of a checkpoint on this host.
    Archive(PathBuf),
    /// An image in the store, which may contain a checkpoint.
    Image(Arc<Image>),
}

/// Copies a checkpoint to the folder of the new container, and finds the image that it needs.
///
/// # Errors
/// `FailedPrecondition`: CRIU is missing or too old, the container has a terminal, or the pod has a user namespace; `NotFound`:
/// the archive, or the image of the checkpointed container; the archive is damaged.
pub(super) async fn receive(
    images: &ImageStore,
    configured: Option<PathBuf>,
    pod: &Pod,
    config: &ContainerConfig,
    source: RestoreSource,
    folder: &Path,
) -> Result<Restore, CriError> {
    check(&pod.namespaces(), config)?;
    let criu = blocking(move || criu::find(configured.as_deref(), kernel_version())).await?;
    let checkpoint = ReceivedCheckpoint::of_container(folder);
    let (copied, store) = (checkpoint.clone(), images.clone());
    let described = blocking(move || {
        match source {
            RestoreSource::Archive(path) => copied.copy_archive(&path)?,
            RestoreSource::Image(image) => {
                let _held = store.hold(&image, "restore")?;
                let layers = store.layer_folders(&image).unwrap_or_default();
                copied.copy_layers(&image.id.to_string(), &layers)?;
            }
        }
        copied.image()
    })
    .await?;
    let names = [&described.rootfs_image_ref, &described.rootfs_image_name];
    let found = names.into_iter().filter(|name| !name.is_empty()).find_map(|name| images.resolve(name));
    let image_name = match described.rootfs_image_name.as_str() {
        "" => described.rootfs_image_ref.clone(),
        name => name.to_owned(),
    };
    let image =
        found.ok_or_else(|| CriError::not_found("the image of the checkpointed container,", &image_name))?;
    Ok(Restore { criu, checkpoint, image, image_name })
}

/// Refuses what CRIU cannot restore.
pub(crate) fn check(modes: &NamespaceOption, config: &ContainerConfig) -> Result<(), CriError> {
    let refuse = |why: &str| Err(CriError::precondition("restore of a checkpoint", why));
    if config.tty {
        return refuse("a container with a terminal cannot be restored");
    }
    if oci::userns::requested(modes)?.is_some() {
        return refuse("a container cannot be restored in a pod with a user namespace");
    }
    Ok(())
}

impl Restore {
    /// Applies the changes of the checkpointed container's root filesystem to the writable layer.
    pub(super) async fn fill_layer(&self, images: &ImageStore, container: &str) -> Result<(), CriError> {
        let checkpoint = self.checkpoint.clone();
        let (removed, changes) =
            blocking(move || Ok::<_, CriError>((checkpoint.removed()?, checkpoint.changes()?))).await?;
        Ok(images.fill_layer(container, removed, changes).await?)
    }

    /// Makes the plan of a container restore the checkpoint in the place of its command.
    pub(super) async fn plan(
        self,
        cgroups: &Cgroups,
        container: &Container,
        mut assembled: Assembled,
    ) -> Result<Assembled, CriError> {
        let cgroup = cgroups.recorded(&container.with(|record| record.cgroup.clone()))?;
        blocking(move || {
            let Self { criu, checkpoint, .. } = self;
            let failed =
                |error: std::io::Error| CriError::internal("prepare the restore of a checkpoint", error);
            if let Some(filter) = &assembled.plan.process.seccomp {
                let index = usize::try_from(filter.filter.0).unwrap_or(usize::MAX);
                if let Some(filter) = assembled.descriptors.get(index) {
                    restore_order::keep_filter(&checkpoint, filter.as_fd()).map_err(failed)?;
                }
            }
            // The file stays the same if the program is replaced meanwhile.
            let program = std::fs::File::open("/proc/self/exe").map_err(failed)?;
            let slot = FdSlot(u32::try_from(assembled.descriptors.len()).unwrap_or(u32::MAX));
            assembled.descriptors.push(program.into());
            let folder = checkpoint.path().display().to_string();
            assembled.plan.restore = Some(RestorePlan { program: slot, folder });
            let order = RestoreOrder {
                criu: criu.program,
                cgroup: cgroup.process_folder().to_owned(),
                streams: checkpoint.streams()?,
                plan: assembled.plan.clone(),
            };
            file::replace(&checkpoint.file(ORDER), &order)?;
            Ok::<_, CriError>(assembled)
        })
        .await
    }
}

/// Returns the additional time for the start of a container that is restored.
pub(super) fn time_of_start(container: &Container) -> Duration {
    // Not a look at the disk: it may hang, and every start comes here.
    if container.with(|record| record.restores) { TIME } else { Duration::ZERO }
}

/// Returns the reason why a restore failed.
pub(super) async fn explain(container: &Container, failure: &InitFailure) -> Option<String> {
    const LONGEST: usize = 4096;
    if failure.step != Step::Restore {
        return None;
    }
    let path = ReceivedCheckpoint::of_container(container.folder()).file(FAILURE);
    let why = blocking(move || Ok::<_, CriError>(std::fs::read_to_string(path).ok())).await.ok().flatten();
    let why = why.unwrap_or_else(|| failure.detail.clone());
    Some(format!("{}: {}", Step::Restore.description(), why.chars().take(LONGEST).collect::<String>()))
}

/// Whether a container that has been started, or has failed to, still has its checkpoint.
pub(super) fn has_leftover(container: &Container) -> bool {
    let is_over = matches!(container.state(), ContainerState::Running { .. } | ContainerState::Exited(_));
    is_over
        && container.with(|record| record.restores)
        && ReceivedCheckpoint::of_container(container.folder()).exists()
}

/// Removes the checkpoint of a container that has been started, or has failed to.
pub(super) async fn clean_up(container: &Container) {
    let checkpoint = ReceivedCheckpoint::of_container(container.folder());
    if let Err(error) = blocking(move || checkpoint.remove()).await {
        tracing::warn!(container = container.id.as_str(), %error, "failed to remove a restored checkpoint");
    }
}
