//! UpdatePodSandboxResources: the resources of a pod as a whole. The kubelet sets the limits of the pod's cgroup
//! itself; berth records them for `crictl inspectp`.

use berth_proto::v1::UpdatePodSandboxResourcesRequest;

use crate::blocking::blocking;
use crate::error::CriError;
use crate::nri::events::Notice;
use crate::pods::Pods;

/// Records the resources of a pod.
///
/// # Errors
/// The pod does not exist, or its record cannot be written.
pub async fn update_pod_sandbox_resources(
    pods: &Pods,
    request: UpdatePodSandboxResourcesRequest,
) -> Result<(), CriError> {
    let pod = pods.store.pod(&request.pod_sandbox_id)?;
    tracing::Span::current().record("pod", pod.id.as_str());
    pods.nri.update_pod(&pod, request.overhead.as_ref(), request.resources.as_ref()).await?;
    let updated = pod.clone();
    blocking(move || {
        // The config stays as the client sent it when it ran the pod.
        updated.intend(|record| {
            let resources = &mut record.resources;
            resources.overhead = request.overhead.clone().or(resources.overhead.take());
            resources.resources = request.resources.clone().or(resources.resources.take());
        })
    })
    .await?;
    pods.nri.pod(Notice::PostUpdatePod, &pod).await;
    Ok(())
}
