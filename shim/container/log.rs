//! Where the log of a container is; and ReopenContainerLog: after the kubelet has renamed a log file, the keeper opens a
//! new one by the old path.

use berth_proto::v1::ContainerConfig;
use berth_runtime::wire::Call;

use crate::daemon::Daemon;
use crate::error::CriError;
use crate::pod::files;
use crate::store::{ContainerState, Pod};

/// Makes the folder of a container's log; the path of the log, without a symbolic link. None where the client wants no
/// log.
///
/// # Errors
/// The folder cannot be made, or not in time; a symbolic link is below the pod's log folder, or has taken its place.
pub(super) async fn prepare(pod: &Pod, config: &ContainerConfig) -> Result<Option<String>, CriError> {
    let (directory, noted) =
        pod.with(|record| (record.config.log_directory.clone(), record.log_folder.clone()));
    if config.log_path.is_empty() {
        return Ok(None);
    }
    let folder = match noted {
        Some(folder) => Some(folder),
        None => files::make_log_folder(&directory).await?,
    };
    let Some(folder) = folder else { return Ok(None) };
    let path = format!("{folder}/{}", config.log_path);
    if let Some((folder, _)) = path.rsplit_once('/') {
        files::make_folder_of_log(folder).await?;
    }
    Ok(Some(path))
}

/// Has the log file of a running container opened anew.
///
/// # Errors
/// `FailedPrecondition` where the container does not run; the file cannot be opened.
pub async fn reopen(daemon: &Daemon, id: &str) -> Result<(), CriError> {
    let container = daemon.store.container(id)?;
    let span = tracing::Span::current();
    span.record("container", container.id.as_str());
    span.record("pod", container.pod.as_str());
    let ContainerState::Running { .. } = container.state() else {
        return Err(CriError::precondition(format!("container {}", container.id), "it is not running"));
    };
    let link = daemon.store.pod(container.pod.as_str())?.link();
    let link = link.ok_or_else(|| {
        CriError::precondition(format!("pod sandbox {}", container.pod), "its keeper has ended")
    })?;
    Ok(link.done(Call::ReopenLog { container: container.id.as_str().to_owned() }).await?)
}
