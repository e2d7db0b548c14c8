//! StopPodSandbox: ends the containers of a pod and releases its resources, except its records.

use tonic::Status;

use super::stopper::PodStopper;
use crate::error::CriError;

/// Stops a pod. A pod that is unknown or already stopped is a success (CRI: "must be idempotent").
///
/// # Errors
/// A resource of the pod cannot be released; a retry continues there.
pub async fn stop_pod_sandbox(stopper: &PodStopper, id: &str) -> Result<(), Status> {
    let pod = match stopper.pods.store.pod(id) {
        Ok(pod) => pod,
        Err(CriError::NotFound { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    tracing::Span::current().record("pod", pod.id.as_str());
    stopper.stop(&pod).await
}
