//! The page of a pod that is being created.

use berth_proto::admin::{ListOperationsResponse, OperationInFlight};

use super::inspection::Inspection;
use super::{PageOptions, common};
use crate::cli::diag::members::PodFacts;
use crate::cli::diag::page::Page;
use crate::cli::diag::section::Section;
use crate::cli::format::time;
use crate::cli::node::NodeClient;

/// The page of a pod whose RunPodSandbox is in flight: the CRI does not show it yet.
pub(super) async fn page(
    node: &mut NodeClient,
    running: &ListOperationsResponse,
    creates: &OperationInFlight,
    options: PageOptions,
) -> Page {
    let mut pod = PodFacts::default();
    pod.status.id.clone_from(&creates.pod_id);
    let common = common(node, running, &pod, |operation| operation == creates).await;
    let inspection = Inspection::collect(&common, &pod, Vec::new(), &[], options);
    Page {
        kind: "pod being created",
        id: creates.pod_id.clone(),
        name: format!("{}/{}", creates.namespace, creates.name),
        state: "creating".to_owned(),
        since: time(creates.started_at),
        limits: Section::from(Err("the pod is being created".to_owned())),
        ..inspection.page(common, options)
    }
}
