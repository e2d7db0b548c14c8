//! UpdatePodSandboxResources: what the kubelet has given a pod as a whole. It limits the pod's cgroup itself; berth keeps
//! the figures, for those who look (`crictl inspectp`).

use berth_proto::v1::UpdatePodSandboxResourcesRequest;

use crate::daemon::{Shared, blocking};
use crate::error::CriError;

/// Records the resources of a pod.
///
/// # Errors
/// There is no such pod, or its record cannot be written.
pub async fn update(daemon: &Shared, request: UpdatePodSandboxResourcesRequest) -> Result<(), CriError> {
    let pod = daemon.store.pod(&request.pod_sandbox_id)?;
    tracing::Span::current().record("pod", pod.id.as_str());
    blocking(move || {
        pod.amend(|record| {
            let linux = record.config.linux.get_or_insert_default();
            linux.overhead = request.overhead.or(linux.overhead.take());
            linux.resources = request.resources.or(linux.resources.take());
        })
    })
    .await
}
