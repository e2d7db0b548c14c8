//! UpdatePodSandboxResources: the resources of a pod as a whole. The kubelet sets the limits of the pod's cgroup
//! itself; berth records them for `crictl inspectp`.

use berth_proto::v1::UpdatePodSandboxResourcesRequest;

use crate::blocking::blocking;
use crate::error::CriError;
use crate::store::Store;

/// Records the resources of a pod.
///
/// # Errors
/// The pod does not exist, or its record cannot be written.
pub async fn update_pod_sandbox_resources(
    store: &Store,
    request: UpdatePodSandboxResourcesRequest,
) -> Result<(), CriError> {
    let pod = store.pod(&request.pod_sandbox_id)?;
    tracing::Span::current().record("pod", pod.id.as_str());
    blocking(move || {
        // The config stays as the client sent it when it ran the pod.
        pod.intend(|record| {
            let resources = &mut record.resources;
            resources.overhead = request.overhead.clone().or(resources.overhead.take());
            resources.resources = request.resources.clone().or(resources.resources.take());
        })
    })
    .await
}
