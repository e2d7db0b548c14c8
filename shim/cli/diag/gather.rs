//! Collects the data of a page. The daemon answers from memory, with deadlines; files and cgroups are read here, in
//! sections with a time limit, so that a stuck container or disk blocks neither the daemon nor the page.

use std::path::PathBuf;
use std::time::Duration;

use berth_proto::admin::{
    DescribePodResponse, HostLink, ListOperationsResponse, OperationInFlight, RunningPull,
};
use berth_proto::v1::{ContainerState, Mount, NamespaceMode, PodSandboxState};

use super::blocked::{self, Facts};
use super::cgroup::{self, CgroupUsage};
use super::members::{self, ContainerFacts, PodFacts, Subject};
use super::page::{
    KeeperSummary, Log, Member, NetworkSummary, OperationSummary, Page, PluginSummary, ProcessSummary,
};
use super::section::{Gathering, PATIENCE, Section, gather};
use super::{files, mounts, processes};
use crate::cli::format::{between, size, time};
use crate::cli::logs::tail;
use crate::cli::node::NodeClient;
use crate::cli::node::select::{Objects, Selected};
use crate::cli::ps::ObjectState;

/// The most processes of a cgroup that are shown.
const MAX_PROCESSES: usize = 50;

/// The time limit for the arguments of a process, which wait for its memory lock.
const ARGUMENTS: Duration = Duration::from_millis(500);

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
        Selected::Pod(pod) => of_pod(node, objects, running, &pod.id, options).await,
        Selected::Container(found) => of_container(node, objects, running, &found.id, options).await,
        Selected::Creating(operation) => Ok(being_created(node, running, operation, options).await),
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
        network: network(&description, pod).into(),
        operations: running.operations.iter().filter(|seen| concerns(seen)).map(operation).collect(),
        plugins: running.plugins.iter().filter(|call| call.pod_id == *id).map(plugin).collect(),
        description,
    }
}

async fn of_pod(
    node: &mut NodeClient,
    objects: &Objects<'_>,
    running: &ListOperationsResponse,
    id: &str,
    options: PageOptions,
) -> Result<Page, String> {
    let pod = members::pod(node, id).await?;
    let containers = members::containers(node, objects, id).await;
    let common = common(node, running, &pod, |operation| operation.pod_id == id).await;
    let mut subjects: Vec<Subject> = pod.subject().into_iter().collect();
    subjects.extend(containers.iter().filter_map(ContainerFacts::subject));
    subjects.extend(pod.being_created(&running.operations));
    let whole = pod.whole_cgroup.clone();
    let limits = gather(PATIENCE, move || match whole {
        Some(path) => cgroup::read(&path).map(|seen| cgroup::figures(&seen.counters)),
        None => Err("the client has set no cgroup parent of the pod; see its containers".to_owned()),
    });
    let logs: Vec<_> = containers.iter().filter_map(|container| log(container, options)).collect();
    let record = common.description.as_ref().map(|seen| seen.record.clone()).unwrap_or_default();
    let changed = gather(PATIENCE, move || files::changed_at(&record));
    let is_ready = pod.status.state() == PodSandboxState::SandboxReady;
    let waits = is_ready && !containers.iter().any(is_running);
    let pulls = if waits { running.pulls.iter().map(pull).collect() } else { Vec::new() };
    let found = Found::collect(&common, &pod, subjects, &pulls, options);
    let since = match is_ready {
        true => pod.status.created_at,
        false => changed.wait().known().copied().unwrap_or(0),
    };
    let mut exits: Vec<_> = containers.iter().filter_map(ContainerFacts::exit).collect();
    exits.reverse();
    Ok(Page {
        kind: "pod",
        id: id.to_owned(),
        name: name_of(&pod),
        attempt: pod.status.metadata.as_ref().map_or(0, |metadata| metadata.attempt),
        image: String::new(),
        state: ObjectState::of_pod(pod.status.state()).text().to_owned(),
        since: time(since),
        reason: String::new(),
        pod_id: String::new(),
        cgroup: pod.cgroup.clone(),
        containers: containers.iter().map(member).collect(),
        limits: limits.wait(),
        mounts: Section::default(),
        logs: logs.into_iter().map(PendingLog::wait).collect(),
        exits,
        keeper: keeper(&common.description, options),
        blocked: found.blocked,
        processes: found.processes,
        network: common.network,
        operations: common.operations,
        plugins: common.plugins,
    })
}

async fn of_container(
    node: &mut NodeClient,
    objects: &Objects<'_>,
    running: &ListOperationsResponse,
    id: &str,
    options: PageOptions,
) -> Result<Page, String> {
    let container = members::container(node, id).await?;
    let listed = objects.containers.iter().find(|listed| listed.id == id);
    let pod_id = listed.map(|listed| listed.pod_sandbox_id.clone()).unwrap_or_default();
    let pod = members::pod(node, &pod_id).await?;
    let of_pod =
        |operation: &OperationInFlight| operation.pod_id == pod_id && operation.container_id.is_empty();
    let concerns = |operation: &OperationInFlight| operation.container_id == id || of_pod(operation);
    let common = common(node, running, &pod, concerns).await;
    let exits = members::exits(node, objects, &container).await;
    let (path, ended) = (container.cgroup.clone(), container.has_ended());
    let limits = gather(PATIENCE, move || match ended {
        true => Err("the container has exited".to_owned()),
        false => cgroup::read(&path).map(|seen| cgroup::figures(&seen.counters)),
    });
    let (volumes, pid) = (volumes(&container.status.mounts), container.pid);
    let mounts = gather(PATIENCE, move || {
        let seen = pid.map(files::mounts).transpose()?.unwrap_or_default();
        Ok(volumes.into_iter().chain(seen).collect())
    });
    let log = log(&container, options);
    let subjects = container.subject().into_iter().collect();
    let found = Found::collect(&common, &pod, subjects, &[], options);
    let status = &container.status;
    let since = match status.state() {
        ContainerState::ContainerRunning => status.started_at,
        ContainerState::ContainerExited => status.finished_at,
        _ => status.created_at,
    };
    Ok(Page {
        kind: "container",
        id: id.to_owned(),
        name: format!("{}/{}", name_of(&pod), container.name()),
        attempt: container.attempt(),
        image: status.image.as_ref().map(|image| image.image.clone()).unwrap_or_default(),
        state: ObjectState::of_container(status.state()).text().to_owned(),
        since: time(since),
        reason: reason(&container),
        pod_id,
        cgroup: container.cgroup.clone(),
        containers: Vec::new(),
        limits: limits.wait(),
        mounts: mounts.wait(),
        logs: log.into_iter().map(PendingLog::wait).collect(),
        exits,
        keeper: keeper(&common.description, options),
        blocked: found.blocked,
        processes: found.processes,
        network: common.network,
        operations: common.operations,
        plugins: common.plugins,
    })
}

/// The page of a pod whose RunPodSandbox is in flight: the CRI does not show it yet.
async fn being_created(
    node: &mut NodeClient,
    running: &ListOperationsResponse,
    creates: &OperationInFlight,
    options: PageOptions,
) -> Page {
    let mut pod = PodFacts::default();
    pod.status.id.clone_from(&creates.pod_id);
    let common = common(node, running, &pod, |operation| operation == creates).await;
    let found = Found::collect(&common, &pod, Vec::new(), &[], options);
    let none = || Section::from(Err("the pod is being created".to_owned()));
    Page {
        kind: "pod being created",
        id: creates.pod_id.clone(),
        name: format!("{}/{}", creates.namespace, creates.name),
        attempt: 0,
        image: String::new(),
        state: "creating".to_owned(),
        since: time(creates.started_at),
        reason: String::new(),
        pod_id: String::new(),
        cgroup: String::new(),
        containers: Vec::new(),
        limits: none(),
        mounts: Section::default(),
        logs: Vec::new(),
        exits: Vec::new(),
        keeper: keeper(&common.description, options),
        blocked: found.blocked,
        processes: found.processes,
        network: common.network,
        operations: common.operations,
        plugins: common.plugins,
    }
}

/// The processes of a page, and what blocks.
struct Found {
    processes: Section<Vec<ProcessSummary>>,
    blocked: Vec<String>,
}

impl Found {
    fn collect(
        common: &Common,
        pod: &PodFacts,
        subjects: Vec<Subject>,
        pulls: &[String],
        options: PageOptions,
    ) -> Self {
        let keeper = common.description.as_ref().map(|seen| seen.keeper_pid).unwrap_or_default();
        let keeper_ended = common.description.is_ok() && keeper == 0 && pod.needs_keeper;
        let single = common.plugins.iter().map(|call| (call.pid, format!("plugin {}", call.plugin)));
        let single = single.chain((keeper > 0).then(|| (keeper, "keeper".to_owned())));
        let gathering: Vec<(String, Gathering<Members>)> = subjects
            .into_iter()
            .map(|Subject { name, cgroup }| {
                (name.clone(), gather(PATIENCE, move || of_cgroup(&name, &cgroup)))
            })
            .collect();
        let mut processes: Vec<ProcessSummary> =
            single.filter_map(|(pid, name)| processes::read(pid, &name)).collect();
        let (mut frozen, mut mounts, mut missing) = (Vec::new(), Vec::new(), Vec::new());
        for (name, section) in gathering {
            match section.wait() {
                Section::Known(members) => {
                    processes.extend(members.processes);
                    mounts.extend(members.unresponsive_mounts.into_iter().map(|mount| (name.clone(), mount)));
                    frozen.extend(members.usage.is_frozen.then_some(name));
                }
                Section::Unknown { reason } => missing.push(format!("{name}: {reason}")),
            }
        }
        if options.arguments {
            add_arguments(&mut processes);
        }
        let mut blocked = blocked::causes(&Facts {
            operations: &common.operations,
            plugins: &common.plugins,
            pulls,
            processes: &processes,
            frozen: &frozen,
            mounts: &mounts,
            keeper_ended,
        });
        let processes = match (processes.is_empty(), missing.is_empty()) {
            (true, false) => Err(missing.join("; ")),
            _ => Ok(processes),
        };
        blocked.extend(missing.into_iter().map(|what| format!("the processes are not available: {what}")));
        Self { processes: processes.into(), blocked }
    }
}

/// A cgroup with its processes, and the mounts that these see and that do not answer.
struct Members {
    usage: CgroupUsage,
    processes: Vec<ProcessSummary>,
    unresponsive_mounts: Vec<String>,
}

fn of_cgroup(name: &str, path: &str) -> Result<Members, String> {
    let seen = cgroup::read(path)?;
    let shown = seen.pids.iter().take(MAX_PROCESSES);
    let mut found: Vec<ProcessSummary> = shown.filter_map(|pid| processes::read(*pid, name)).collect();
    let of_execs = seen.execs.iter().flat_map(|(exec, pids)| pids.iter().map(move |pid| (exec, *pid)));
    found.extend(of_execs.take(MAX_PROCESSES).filter_map(|(exec, pid)| {
        let process = processes::read(pid, name)?;
        Some(ProcessSummary { exec: exec.clone(), ..process })
    }));
    let unresponsive_mounts = seen.pids.first().copied().map(mounts::unresponsive).unwrap_or_default();
    Ok(Members { usage: seen, processes: found, unresponsive_mounts })
}

/// Adds the arguments of processes that answer in time.
fn add_arguments(processes: &mut [ProcessSummary]) {
    let reading: Vec<_> = processes
        .iter()
        .map(|process| {
            let pid = process.pid;
            gather(ARGUMENTS, move || processes::command(pid))
        })
        .collect();
    for (process, command) in processes.iter_mut().zip(reading) {
        // A thread of the kernel and a process that has ended have no arguments.
        if let Section::Known(command) = command.wait()
            && !command.trim().is_empty()
        {
            process.command = command;
        }
    }
}

fn is_running(container: &ContainerFacts) -> bool {
    container.status.state() == ContainerState::ContainerRunning
}

fn member(container: &ContainerFacts) -> Member {
    Member {
        id: container.status.id.clone(),
        name: container.name(),
        attempt: container.attempt(),
        state: ObjectState::of_container(container.status.state()).text(),
    }
}

fn name_of(pod: &PodFacts) -> String {
    let metadata = pod.status.metadata.clone().unwrap_or_default();
    format!("{}/{}", metadata.namespace, metadata.name)
}

fn reason(container: &ContainerFacts) -> String {
    let status = &container.status;
    if !container.has_ended() {
        return String::new();
    }
    let message = berth_image::printable(&status.message, 1000);
    format!("{} (code {}) {message}", status.reason, status.exit_code).trim_end().to_owned()
}

fn operation(seen: &OperationInFlight) -> OperationSummary {
    let elapsed = between(seen.step_started_at, crate::clock::now());
    OperationSummary {
        rpc: seen.rpc.clone(),
        step: seen.step.clone(),
        since: time(seen.started_at),
        step_since: time(seen.step_started_at),
        step_milliseconds: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
    }
}

fn plugin(call: &berth_proto::admin::PluginCall) -> PluginSummary {
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

fn pull(pull: &RunningPull) -> String {
    format!(
        "image {} is being pulled on this node: {} of {} layers, {} of {}",
        pull.image,
        pull.layers_done,
        pull.layers,
        size(pull.received),
        size(pull.size)
    )
}

fn network(
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

fn volumes(mounts: &[Mount]) -> Vec<String> {
    let shown = mounts.iter().map(|mount| {
        let source = match mount.image.as_ref() {
            Some(image) if mount.host_path.is_empty() => format!("image {}", image.image),
            _ => mount.host_path.clone(),
        };
        let access = if mount.readonly { "ro" } else { "rw" };
        format!("volume {source} -> {} ({access})", mount.container_path)
    });
    shown.collect()
}

/// A log that is being read.
struct PendingLog {
    container: String,
    path: String,
    lines: Gathering<Vec<String>>,
}

impl PendingLog {
    fn wait(self) -> Log {
        Log { container: self.container, path: self.path, lines: self.lines.wait() }
    }
}

fn log(container: &ContainerFacts, options: PageOptions) -> Option<PendingLog> {
    let path = container.status.log_path.clone();
    let file = PathBuf::from(&path);
    let lines = gather(PATIENCE, move || match options.logs {
        true => tail::last_lines(&file, options.lines)
            .map_err(|error| format!("failed to read {}: {error}", file.display())),
        false => Err("logs of containers are left out".to_owned()),
    });
    (!path.is_empty()).then(|| PendingLog { container: container.name(), path, lines })
}

fn keeper(description: &Result<DescribePodResponse, String>, options: PageOptions) -> Section<KeeperSummary> {
    let seen = match description {
        Ok(seen) => seen,
        Err(reason) => return Section::Unknown { reason: reason.clone() },
    };
    let path = seen.keeper_log.clone();
    let lines = gather(PATIENCE, move || files::last_lines(&path, options.lines));
    Section::Known(KeeperSummary { pid: seen.keeper_pid, log: seen.keeper_log.clone(), lines: lines.wait() })
}
