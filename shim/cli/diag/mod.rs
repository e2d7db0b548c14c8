//! `berth diag`: one page about a pod or a container.
//!
//! * [`page`]: the data; [`render`]: the page for people
//! * [`gather`]: collects the data from the daemon, procfs, cgroups and log files; [`members`]: the pod and its
//!   containers
//! * [`section`]: parts with a time limit; [`processes`], [`mounts`], [`cgroup`], [`files`]: such parts
//! * [`blocked`]: what probably blocks

mod blocked;
mod cgroup;
mod files;
pub(super) mod gather;
mod members;
mod mounts;
pub(super) mod page;
mod processes;
pub(super) mod render;
pub(super) mod section;

use std::process::ExitCode;

use clap::Args;

use super::node::select::Objects;
use super::node::{Endpoint, NodeClient, OutputFormat, json, run as run_command};
use gather::PageOptions;

/// Arguments of `berth diag`.
#[derive(Clone, Debug, Args)]
pub struct DiagArgs {
    /// Pod or container: its id, the start of its id, its name, NAMESPACE/POD or POD/CONTAINER
    #[arg(value_name = "POD|CONTAINER|NAME")]
    object: String,
    /// Show this many lines of each log
    #[arg(long, value_name = "LINES", default_value_t = 10)]
    lines: usize,
    /// Set the format of the output
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: OutputFormat,
    #[command(flatten)]
    endpoint: Endpoint,
}

pub(super) fn run(args: DiagArgs) -> ExitCode {
    run_command(show(args))
}

async fn show(args: DiagArgs) -> Result<String, String> {
    let mut node = NodeClient::connect(args.endpoint).await?;
    let running = node.operations().await?;
    let (pods, containers) = (node.pods().await?, node.containers().await?);
    let objects = Objects { pods: &pods, containers: &containers, operations: &running.operations };
    let selected = objects.find(&args.object)?;
    let options = PageOptions { arguments: true, logs: true, lines: args.lines };
    let page = gather::page(&mut node, &objects, &running, selected, options).await?;
    match args.output {
        OutputFormat::Json => json(&page),
        OutputFormat::Text => Ok(render::text(&page)),
    }
}
