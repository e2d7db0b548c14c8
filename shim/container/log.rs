//! The log file of a container, and ReopenContainerLog: after the kubelet has renamed a log file, a new one is opened
//! at the old path. The daemon opens log files on threads that may block, and passes the descriptors to the keeper.

use std::os::fd::OwnedFd;

use berth_proto::v1::ContainerConfig;
use berth_runtime::plan::FdSlot;
use berth_runtime::wire::Call;

use crate::error::CriError;
use crate::host_files;
use crate::store::{ContainerState, Pod, Store};

/// An open log file.
#[derive(Debug)]
pub(super) struct LogFile {
    /// The path, without symbolic links.
    pub(super) path: String,
    /// The file, open for appending.
    pub(super) file: OwnedFd,
}

/// Creates the log file of a container and its folder. Returns none if the client requests no log.
///
/// # Errors
/// They cannot be created in time, or the path at or below the pod's log folder contains a symbolic link.
pub(super) async fn make(pod: &Pod, config: &ContainerConfig) -> Result<Option<LogFile>, CriError> {
    let Some(path) = path_of(pod, config).await? else { return Ok(None) };
    let file = host_files::create_log(&path).await?;
    Ok(Some(LogFile { path, file }))
}

async fn path_of(pod: &Pod, config: &ContainerConfig) -> Result<Option<String>, CriError> {
    let (directory, recorded) =
        pod.with(|record| (record.config.log_directory.clone(), record.log_folder.clone()));
    if config.log_path.is_empty() {
        return Ok(None);
    }
    let folder = match recorded {
        Some(folder) => Some(folder),
        None => host_files::create_log_folder(&directory).await?,
    };
    Ok(folder.map(|folder| format!("{folder}/{}", config.log_path)))
}

/// Switches a running container to a new log file.
///
/// # Errors
/// `FailedPrecondition` if the container is not running; the file cannot be opened.
pub async fn reopen(store: &Store, id: &str) -> Result<(), CriError> {
    let container = store.container(id)?;
    let span = tracing::Span::current();
    span.record("container", container.id.as_str());
    span.record("pod", container.pod.as_str());
    let ContainerState::Running { .. } = container.state() else {
        return Err(CriError::precondition(format!("container {}", container.id), "it is not running"));
    };
    let pod = store.pod(container.pod.as_str())?;
    let link = pod.link().ok_or_else(|| {
        CriError::precondition(format!("pod sandbox {}", container.pod), "its keeper has ended")
    })?;
    let config = container.with(|record| record.config.clone());
    let (log, files) = match path_of(&pod, &config).await? {
        Some(path) => (Some(FdSlot(0)), vec![host_files::open_log(path).await?]),
        None => (None, Vec::new()),
    };
    link.call(Call::ReopenLog { container: container.id.as_str().to_owned(), log }, files).await?;
    Ok(())
}
