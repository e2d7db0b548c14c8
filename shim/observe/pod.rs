//! DescribePod: where the state of a pod is, and how packets reach it. The files are not read here: their disk may hang.

use std::time::Duration;

use berth_cni::{HostLink, Network};
use berth_proto::admin::{DescribePodResponse, HostLink as Link};

use crate::error::CriError;
use crate::ids::PodId;
use crate::pods::Pods;

/// The time limit of requests to the kernel.
const PATIENCE: Duration = Duration::from_secs(2);

/// Describes a pod, or a pod that is being created.
///
/// # Errors
/// `NotFound`.
pub async fn describe(pods: &Pods, network: &Network, id: &str) -> Result<DescribePodResponse, CriError> {
    let pod = pods.store.pod(id);
    let id = match &pod {
        Ok(pod) => pod.id.clone(),
        Err(_) => being_created(pods, id).ok_or_else(|| CriError::not_found("pod sandbox", id))?,
    };
    let links = tokio::time::timeout(PATIENCE, network.host_links(id.as_str()));
    let rules = tokio::time::timeout(PATIENCE, network.rules_of(id.as_str()));
    let (links, rules) = tokio::join!(links, rules);
    let (links, links_error) = known(links);
    let (rules, rules_error) = known(rules);
    let keeper = pod.as_ref().ok().and_then(|pod| pod.link());
    Ok(DescribePodResponse {
        keeper_pid: keeper.map(|keeper| keeper.process().pid()).unwrap_or_default(),
        keeper_log: pods.folders.pod_state(&id).join("keeper.log").display().to_string(),
        record: pods.folders.pod(&id).join("pod.json").display().to_string(),
        reconciled: pod.as_ref().is_ok_and(|pod| pod.is_reconciled_now()),
        network: network.status().network,
        links: links.into_iter().map(link).collect(),
        links_error,
        rules,
        rules_error,
    })
}

fn being_created(pods: &Pods, id: &str) -> Option<PodId> {
    let operations = pods.operations.in_flight();
    let created = operations.into_iter().find_map(|seen| seen.creates.filter(|created| created == id))?;
    PodId::try_from(created).ok()
}

/// Splits a result into its value and the reason why it is unknown.
fn known<T: Default, E: std::fmt::Display>(
    result: Result<Result<T, E>, tokio::time::error::Elapsed>,
) -> (T, String) {
    match result {
        Ok(Ok(value)) => (value, String::new()),
        Ok(Err(error)) => (T::default(), error.to_string()),
        Err(_) => (T::default(), format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

fn link(link: HostLink) -> Link {
    let HostLink { name, kind, up, mtu, mac, controller, forwards, addresses } = link;
    Link { name, kind, up, mtu, mac, controller, forwards, addresses }
}
