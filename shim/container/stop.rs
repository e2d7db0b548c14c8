//! StopContainer: sends the stop signal, waits for the grace period, then kills all processes in the container's
//! cgroup.

use std::sync::Arc;
use std::time::Duration;

use berth_runtime::wire::{Call, Failure};
use tonic::Status;

use super::exit;
use crate::cgroups::Cgroups;
use crate::error::CriError;
use crate::handlers;
use crate::keeper::KeeperError;
use crate::operation::{OperationKey, Progress, StopStep};
use crate::pods::Pods;
use crate::store::{Container, ContainerState, Store};

/// Stops a container within `timeout` seconds; 0 or less kills it immediately. A container that is unknown, not
/// started or exited is a success (CRI: "must be idempotent").
///
/// # Errors
/// It cannot be killed.
pub async fn stop_container(
    pods: &Arc<Pods>,
    cgroups: &Cgroups,
    id: &str,
    timeout: i64,
) -> Result<(), Status> {
    let container = match pods.store.container(id) {
        Ok(container) => container,
        Err(CriError::NotFound { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let span = tracing::Span::current();
    span.record("container", container.id.as_str());
    span.record("pod", container.pod.as_str());
    let (stopping, cgroups) = (pods.clone(), cgroups.clone());
    pods.operations
        .join(OperationKey::Stop(container.id.clone(), timeout), move |progress| async move {
            run_steps(&stopping, &cgroups, &container, timeout, &progress).await?;
            if matches!(container.state(), ContainerState::Exited(_)) {
                progress.step(StopStep::Plugins);
                stopping.nri.stopped(&container).await;
            }
            Ok(String::new())
        })
        .await
        .map(drop)
}

async fn run_steps(
    pods: &Pods,
    cgroups: &Cgroups,
    container: &Arc<Container>,
    timeout: i64,
    progress: &Progress,
) -> Result<(), CriError> {
    if !container.state().needs_stop(is_reconciled(&pods.store, container)) {
        return Ok(());
    }
    let grace = Duration::from_secs(u64::try_from(timeout).unwrap_or(0));
    if !grace.is_zero() {
        progress.step(StopStep::Grace);
        let stop_by_signal = async {
            if send_stop_signal(pods, container).await? {
                container.ended().await;
                return Ok::<_, CriError>(true);
            }
            Ok(false)
        };
        if let Ok(ended) = tokio::time::timeout(grace, stop_by_signal).await
            && ended?
        {
            return Ok(());
        }
    }
    progress.step(StopStep::Kill);
    exit::kill(pods, cgroups, container).await
}

/// Whether the keeper's state of the pod has been taken over.
fn is_reconciled(store: &Store, container: &Container) -> bool {
    store.pod(container.pod.as_str()).is_ok_and(|pod| pod.is_reconciled_now())
}

/// Has the keeper, or the container's OCI runtime, send the stop signal. Returns false if it does not answer: the caller then
/// kills.
async fn send_stop_signal(pods: &Pods, container: &Container) -> Result<bool, CriError> {
    let Some(link) = pods.keeper_of(container)? else { return Ok(false) };
    let signal = container.with(|record| record.stop_signal);
    if let Some(runtime) = container.runtime() {
        let sent = handlers::calls::kill(&runtime, &container.id, signal).await;
        if let Err(error) = &sent
            && !matches!(container.state(), ContainerState::Exited(_))
        {
            tracing::warn!(container = container.id.as_str(), %error, "failed to send the stop signal");
        }
        return Ok(sent.is_ok());
    }
    let call = Call::Signal { container: container.id.as_str().to_owned(), signal };
    match link.execute(call).await {
        Ok(()) => Ok(true),
        Err(error @ KeeperError::Failure(Failure::System { .. })) => Err(error.into()),
        Err(error) => {
            tracing::warn!(container = container.id.as_str(), %error, "failed to send the stop signal");
            Ok(false)
        }
    }
}
