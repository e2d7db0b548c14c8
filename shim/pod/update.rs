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
        // The config stays what the client gave when it ran the pod.
        pod.intend(|record| {
            let resources = &mut record.resources;
            resources.overhead = request.overhead.clone().or(resources.overhead.take());
            resources.resources = request.resources.clone().or(resources.resources.take());
        })
    })
    .await
}
