//! Collects the data of a page. The daemon answers from memory, with deadlines; files and cgroups are read here, in
//! sections with a time limit, so that a stuck container or disk blocks neither the daemon nor the page.
//!
//! * this file: what all pages have; [`pod`], [`container`], [`creating`]: the page of each kind of object
//! * [`inspection`]: processes, and what blocks; [`logs`]: logs of containers and of the keeper
//! * [`summaries`]: the daemon's answers as parts of a page

mod container;
mod creating;
mod inspection;
mod logs;
mod pod;
mod summaries;

use berth_proto::admin::{DescribePodResponse, ListOperationsResponse, OperationInFlight};

use super::members::PodFacts;
use super::page::{NetworkSummary, OperationSummary, Page, PluginSummary};
use super::section::Section;
use crate::cli::node::NodeClient;
use crate::cli::node::select::{Objects, Selected};

/// The parts of a page.
#[derive(Clone, Copy, Debug)]
pub(in crate::cli) struct PageOptions {
    /// Show the arguments of processes, which can have secrets.
    pub(in crate::cli) arguments: bool,
    /// Show the logs of containers, which can have secrets.
    pub(in crate::cli) logs: bool,
    /// The number of lines of each log.
    pub(in crate::cli) lines: usize,
}

/// Collects the page of an object.
pub(in crate::cli) async fn page(
    node: &mut NodeClient,
    objects: &Objects<'_>,
    running: &ListOperationsResponse,
    selected: Selected<'_>,
    options: PageOptions,
) -> Result<Page, String> {
    match selected {
        Selected::Pod(pod) => pod::page(node, objects, running, &pod.id, options).await,
        Selected::Container(found) => container::page(node, objects, running, &found.id, options).await,
        Selected::Creating(operation) => Ok(creating::page(node, running, operation, options).await),
    }
}

/// The parts that pages of pods and containers share.
struct Common {
    description: Result<DescribePodResponse, String>,
    network: Section<NetworkSummary>,
    operations: Vec<OperationSummary>,
    plugins: Vec<PluginSummary>,
}

async fn common(
    node: &mut NodeClient,
    running: &ListOperationsResponse,
    pod: &PodFacts,
    concerns: impl Fn(&OperationInFlight) -> bool,
) -> Common {
    let id = &pod.status.id;
    let description = node.describe_pod(id).await;
    Common {
        network: summaries::network(&description, pod).into(),
        operations: running
            .operations
            .iter()
            .filter(|seen| concerns(seen))
            .map(summaries::operation)
            .collect(),
        plugins: running.plugins.iter().filter(|call| call.pod_id == *id).map(summaries::plugin).collect(),
        description,
    }
}

fn name_of(pod: &PodFacts) -> String {
    let metadata = pod.status.metadata.clone().unwrap_or_default();
    format!("{}/{}", metadata.namespace, metadata.name)
}
