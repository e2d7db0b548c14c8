//! ReopenContainerLog: after the kubelet has renamed a log file, the keeper opens a new one by the old path.

use berth_runtime::wire::Call;

use crate::daemon::Daemon;
use crate::error::CriError;
use crate::store::ContainerState;

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
