//! CheckpointContainer: writes the state of a running container to an archive. The container goes on.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_image::{IdRange, ImageStore, WritableDiff};
use berth_proto::v1::CheckpointContainerRequest;
use berth_runtime::plan;
use oci_spec::runtime::Spec;
use tonic::Status;

use super::restore;
use crate::blocking::blocking;
use crate::cgroups::Cgroups;
use crate::check::files::kernel_version;
use crate::checkpoint::archive::{ArchiveLocation, UnnamedArchive};
use crate::checkpoint::container_dump::ContainerDump;
use crate::checkpoint::criu::{self, Criu};
use crate::checkpoint::dump::{self, DumpOrder};
use crate::checkpoint::metadata::CheckpointedContainer;
use crate::checkpoint::pod_folder;
use crate::checkpoint::work::CheckpointWork;
use crate::error::CriError;
use crate::oci;
use crate::operation::{CheckpointStep, OperationKey, Progress};
use crate::pods::Pods;
use crate::store::{Container, ContainerState};
use crate::views::container_status;

/// The parts of the daemon that a checkpoint uses.
#[derive(Clone, Debug)]
pub struct CheckpointParts {
    /// The pods and containers.
    pub pods: Arc<Pods>,
    /// Their cgroups.
    pub cgroups: Cgroups,
    /// Their writable layers.
    pub images: ImageStore,
    /// The configured path of CRIU.
    pub criu: Option<PathBuf>,
}

/// Checkpoints a container. A timeout of 0 is none. CRIU is never interrupted: after a timeout it ends in the background,
/// and there is no archive.
///
/// # Errors
/// `NotFound`; `InvalidArgument` for the location or the timeout; `FailedPrecondition` if the container does not run, CRIU
/// is missing or too old, or the container has something that cannot be dumped; `AlreadyExists` if there is a file at the
/// location; `DeadlineExceeded`.
pub async fn checkpoint_container(
    parts: CheckpointParts,
    request: CheckpointContainerRequest,
) -> Result<(), Status> {
    let location = ArchiveLocation::new(&request.location)?;
    let timeout = u64::try_from(request.timeout).map_err(|_| CriError::invalid("timeout", "is negative"))?;
    let container = parts.pods.store.container(&request.container_id)?;
    let span = tracing::Span::current();
    span.record("container", container.id.as_str());
    span.record("pod", container.pod.as_str());
    running(&container)?;
    refuse_other_runtime(&container)?;
    let configured = parts.criu.clone();
    let criu = blocking(move || criu::find(configured.as_deref(), kernel_version())).await?;
    let deadline = (timeout > 0).then(|| Instant::now() + Duration::from_secs(timeout));
    let operations = parts.pods.operations.clone();
    let key = OperationKey::Checkpoint(container.id.clone(), location.path().to_owned());
    let checkpoint = operations.join(key, move |progress| async move {
        let checkpoint = Checkpoint { parts, container, criu, location, deadline };
        checkpoint.run(&progress).await.map(|()| String::new()).map_err(Status::from)
    });
    let Some(deadline) = deadline else { return checkpoint.await.map(drop) };
    match tokio::time::timeout_at(deadline.into(), checkpoint).await {
        Ok(done) => done.map(drop),
        Err(_) => Err(late(timeout).into()),
    }
}

fn late(seconds: u64) -> CriError {
    CriError::deadline(format!("the checkpoint was not complete after {seconds} s"))
}

/// Refuses a container of an OCI runtime.
///
/// # Errors
/// `FailedPrecondition` with its program.
pub(crate) fn refuse_other_runtime(container: &Container) -> Result<(), CriError> {
    let Some(runtime) = container.runtime() else { return Ok(()) };
    let why = format!("{} runs it, and only berth's own runtime checkpoints", runtime.program.display());
    Err(CriError::precondition(format!("container {}", container.id), why))
}

/// Returns the pid of a running container.
pub(crate) fn running(container: &Container) -> Result<i32, CriError> {
    let why = match container.state() {
        ContainerState::Running { pid, .. } => return Ok(pid),
        ContainerState::Creating | ContainerState::Created { .. } => "it has not been started",
        ContainerState::Exited(_) => "it has ended",
    };
    Err(CriError::precondition(format!("container {}", container.id), why))
}

struct Checkpoint {
    parts: CheckpointParts,
    container: Arc<Container>,
    criu: Criu,
    location: ArchiveLocation,
    deadline: Option<Instant>,
}

impl Checkpoint {
    async fn run(self, progress: &Progress) -> Result<(), CriError> {
        // Neither a command nor an update of limits starts while the container is frozen.
        let turn = self.container.turn.clone().write_owned().await;
        self.in_time()?;
        let pid = running(&self.container)?;
        let work = CheckpointWork::of_container(self.container.folder());
        let new = work.clone();
        blocking(move || new.create()).await?;
        progress.step(CheckpointStep::Dump);
        let dumped = self.dump(&work, pid).await;
        let done = match dumped {
            Ok(described) => {
                drop(turn);
                progress.step(CheckpointStep::Archive);
                self.write_archive(&work, described).await
            }
            Err(error) => Err(error),
        };
        let removed = blocking(move || work.remove()).await;
        match (done, removed) {
            (Err(error), Err(left)) => Err(error.with_undo_errors(&[left.to_string()])),
            (Err(error), Ok(())) => Err(error),
            // Recovery removes the folder; the archive is complete.
            (Ok(()), Err(left)) => {
                tracing::warn!(container = self.container.id.as_str(), error = %left, "failed to remove the work folder of a checkpoint");
                Ok(())
            }
            (Ok(()), Ok(())) => Ok(()),
        }
    }

    /// Fails if the caller has given up.
    fn in_time(&self) -> Result<(), CriError> {
        match self.deadline {
            Some(deadline) if Instant::now() >= deadline => {
                Err(CriError::deadline("the checkpoint was not complete in time"))
            }
            _ => Ok(()),
        }
    }

    async fn dump(&self, work: &CheckpointWork, pid: i32) -> Result<CheckpointedContainer, CriError> {
        let described = describe(&self.container, pid).await?;
        let container = container_dump(&self.parts, &self.container, pid, &described.spec, work)?;
        let criu = self.criu.program.clone();
        let order = DumpOrder { criu, containers: vec![container], shared: None, within: None };
        let Err(why) = dump::run(&order).await else { return Ok(described) };
        thaw(&self.parts.cgroups, &self.container, work).await;
        // An exit is reported slightly after the process has ended.
        let operation = format!("checkpoint container {}", self.container.id);
        Err(match self.container.state() {
            ContainerState::Exited(_) => CriError::precondition(
                format!("container {}", self.container.id),
                "it ended during the checkpoint",
            ),
            _ => CriError::failed(operation, why),
        })
    }

    async fn write_archive(
        &self,
        work: &CheckpointWork,
        described: CheckpointedContainer,
    ) -> Result<(), CriError> {
        let (work, location) = (work.clone(), self.location.clone());
        let deadline = self.deadline;
        blocking(move || {
            described.write(&work)?;
            let archive = UnnamedArchive::write(&work, &location)?;
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(CriError::deadline("the checkpoint was not complete in time"));
            }
            archive.publish()
        })
        .await
    }
}

/// Describes a container before its dump.
pub(crate) async fn describe(
    container: &Arc<Container>,
    pid: i32,
) -> Result<CheckpointedContainer, CriError> {
    let read = container.clone();
    let spec: Spec = blocking(move || read.spec.whole()).await?;
    Ok(CheckpointedContainer {
        status: container_status(container),
        pid,
        spec,
        checkpointed_at: crate::clock::now(),
    })
}

/// Returns the helper's order for a container.
pub(crate) fn container_dump(
    parts: &CheckpointParts,
    container: &Container,
    pid: i32,
    spec: &Spec,
    work: &CheckpointWork,
) -> Result<ContainerDump, CriError> {
    let missing = || CriError::internal("checkpoint a container", "its writable layer is gone");
    let layer = parts.images.layer(container.id.as_str()).ok_or_else(missing)?;
    let pod = parts.pods.store.pod(container.pod.as_str())?;
    let users = oci::userns::requested(&pod.namespaces())?.unwrap_or_default();
    let (cgroup, terminal) = container.with(|record| (record.cgroup.clone(), record.config.tty));
    Ok(ContainerDump {
        name: None,
        pid,
        cgroup,
        work: work.path().to_owned(),
        bound: bind_mounts(spec),
        terminal,
        diff: WritableDiff {
            upper: layer.upper,
            lower: layer.lower,
            uids: ranges(&users.uids),
            gids: ranges(&users.gids),
        },
    })
}

/// Thaws a container whose helper was killed.
pub(crate) async fn thaw(cgroups: &Cgroups, container: &Container, work: &CheckpointWork) {
    let (cgroups, work) = (cgroups.clone(), work.clone());
    let cgroup = container.with(|record| record.cgroup.clone());
    let thawed = blocking(move || match work.is_frozen() {
        true => Ok::<_, CriError>(cgroups.recorded(&cgroup)?.set_frozen(false)?),
        false => Ok(()),
    });
    if let Err(error) = thawed.await
        && !matches!(container.state(), ContainerState::Exited(_))
    {
        tracing::warn!(container = container.id.as_str(), %error, "failed to thaw a container after a checkpoint");
    }
}

/// Removes the work folders that an earlier daemon has left behind, each after its helper has ended. Does not wait.
pub fn remove_leftovers(pods: &Pods, cgroups: &Cgroups) {
    for container in pods.store.containers() {
        // A container that waits for its start still needs its checkpoint.
        if restore::has_leftover(&container) {
            let container = container.clone();
            tokio::spawn(async move { restore::clean_up(&container).await });
        }
        let work = CheckpointWork::of_container(container.folder());
        if work.exists() {
            let cgroups = cgroups.clone();
            tokio::spawn(async move { remove_leftover(&cgroups, &container, work).await });
        }
    }
    for pod in pods.store.pods() {
        let work = CheckpointWork::of_container(&pods.folders.pod(&pod.id));
        if work.exists() {
            tokio::spawn(async move {
                match blocking(move || remove_pod_leftover(&work)).await {
                    Ok(()) => tracing::info!(pod = pod.id.as_str(), "removed an interrupted checkpoint"),
                    Err(error) => {
                        tracing::warn!(pod = pod.id.as_str(), %error, "failed to remove an interrupted checkpoint");
                    }
                }
            });
        }
    }
}

fn remove_pod_leftover(work: &CheckpointWork) -> Result<(), CriError> {
    let lock =
        work.lock().map_err(|error| CriError::internal("lock the work folder of a checkpoint", error))?;
    pod_folder::remove_interrupted(work);
    let removed = work.remove();
    drop(lock);
    Ok(removed?)
}

async fn remove_leftover(cgroups: &Cgroups, container: &Container, work: CheckpointWork) {
    let _turn = container.turn.clone().write_owned().await;
    let waiting = work.clone();
    let locked = blocking(move || {
        waiting.lock().map_err(|error| CriError::internal("lock the work folder of a checkpoint", error))
    });
    let lock = match locked.await {
        Ok(lock) => lock,
        Err(error) => {
            tracing::warn!(container = container.id.as_str(), %error, "failed to wait for an interrupted checkpoint");
            return;
        }
    };
    thaw(cgroups, container, &work).await;
    match blocking(move || work.remove()).await {
        Ok(()) => tracing::info!(container = container.id.as_str(), "removed an interrupted checkpoint"),
        Err(error) => {
            tracing::warn!(container = container.id.as_str(), %error, "failed to remove an interrupted checkpoint");
        }
    }
    drop(lock);
}

/// Returns the destinations of the bind mounts of a spec.
fn bind_mounts(spec: &Spec) -> Vec<String> {
    let mounts = spec.mounts().iter().flatten();
    let bound = mounts.filter(|mount| {
        let is_bind = |option: &String| option == "bind" || option == "rbind";
        mount.typ().as_deref() == Some("bind") || mount.options().iter().flatten().any(is_bind)
    });
    bound.map(|mount| mount.destination().display().to_string()).collect()
}

fn ranges(ranges: &[plan::IdRange]) -> Vec<IdRange> {
    let range = |range: &plan::IdRange| IdRange {
        inside: range.inside,
        outside: range.outside,
        length: range.length,
    };
    ranges.iter().map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{MountBuilder, SpecBuilder};

    #[test]
    fn bind_mounts_are_found_by_type_or_option() {
        let mount = |destination: &str, kind: &str, option: &str| {
            MountBuilder::default()
                .destination(destination)
                .typ(kind)
                .options(vec![option.to_owned()])
                .build()
                .unwrap()
        };
        let mounts =
            vec![mount("/a", "bind", "ro"), mount("/b", "", "rbind"), mount("/dev", "tmpfs", "nosuid")];
        let spec = SpecBuilder::default().mounts(mounts).build().unwrap();
        assert_eq!(bind_mounts(&spec), ["/a", "/b"]);
    }
}
