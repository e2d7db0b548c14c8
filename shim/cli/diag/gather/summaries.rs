//! The daemon's answers as parts of a page.

use berth_proto::admin::{DescribePodResponse, HostLink, OperationInFlight, RunningPull};
use berth_proto::v1::NamespaceMode;

use crate::cli::diag::members::PodFacts;
use crate::cli::diag::page::{NetworkSummary, OperationSummary, PluginSummary};
use crate::cli::diag::section::Section;
use crate::cli::format::{between, size, time};

pub(super) fn operation(seen: &OperationInFlight) -> OperationSummary {
    let elapsed = between(seen.step_started_at, crate::clock::now());
    OperationSummary {
        rpc: seen.rpc.clone(),
        step: seen.step.clone(),
        since: time(seen.started_at),
        step_since: time(seen.step_started_at),
        step_milliseconds: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
    }
}

pub(super) fn plugin(call: &berth_proto::admin::PluginCall) -> PluginSummary {
    let elapsed = between(call.started_at, crate::clock::now());
    PluginSummary {
        plugin: call.plugin.clone(),
        command: call.command.clone(),
        pid: call.pid,
        since: time(call.started_at),
        milliseconds: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
        stderr: call.stderr.clone(),
    }
}

pub(super) fn pull(pull: &RunningPull) -> String {
    format!(
        "image {} is being pulled on this node: {} of {} layers, {} of {}",
        pull.image,
        pull.layers_done,
        pull.layers,
        size(pull.received),
        size(pull.size)
    )
}

pub(super) fn network(
    description: &Result<DescribePodResponse, String>,
    pod: &PodFacts,
) -> Result<NetworkSummary, String> {
    let options = pod.status.linux.as_ref().and_then(|linux| linux.namespaces.as_ref()?.options.as_ref());
    if options.is_some_and(|options| options.network() == NamespaceMode::Node) {
        return Ok(NetworkSummary { network: "host".to_owned(), ..NetworkSummary::default() });
    }
    let seen = description.as_ref().map_err(Clone::clone)?;
    let addresses = pod.status.network.iter().flat_map(|network| {
        let more = network.additional_ips.iter().map(|more| more.ip.clone());
        std::iter::once(network.ip.clone()).chain(more).filter(|address| !address.is_empty())
    });
    let section = |lines: Vec<String>, error: &str| match error {
        "" => Section::Known(lines),
        error => Section::Unknown { reason: error.to_owned() },
    };
    Ok(NetworkSummary {
        network: seen.network.clone(),
        addresses: addresses.collect(),
        host_ports: pod.host_ports.clone(),
        links: section(seen.links.iter().map(link).collect(), &seen.links_error),
        rules: section(seen.rules.clone(), &seen.rules_error),
    })
}

fn link(link: &HostLink) -> String {
    let state = if link.up { "up" } else { "DOWN" };
    let mut text = format!("{} {} {state} mtu {} {}", link.name, link.kind, link.mtu, link.mac);
    if !link.controller.is_empty() {
        let forwards = if link.forwards { "forwards" } else { "does not forward" };
        text.push_str(&format!(", port of {}, {forwards}", link.controller));
    }
    if !link.addresses.is_empty() {
        text.push_str(&format!(", {}", link.addresses.join(" ")));
    }
    text
}
