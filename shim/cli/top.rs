//! `berth top`: the usage of processors and memory by pods and containers, as a live table.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use berth_proto::v1::{
    ContainerStats, CpuUsage, ListPodSandboxStatsRequest, MemoryUsage, PodSandboxStats, UInt64Value,
};
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::collections::HashMap;

use super::format::{size, table};
use super::node::{Endpoint, NodeClient, OutputFormat, answer, json, run as run_command};

/// The time between the two samples of `--once`.
const ONE_SAMPLE: Duration = Duration::from_millis(500);

/// Arguments of `berth top`.
#[derive(Clone, Debug, Args)]
pub struct TopArgs {
    /// Print one table and exit; implied if the output is not a terminal
    #[arg(long)]
    once: bool,
    /// Set the seconds between two refreshes
    #[arg(short, long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    /// Sort by this column
    #[arg(short, long, value_name = "COLUMN", default_value = "cpu")]
    sort: Column,
    /// Show only pods of this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Show pods without their containers
    #[arg(long)]
    pods: bool,
    /// Set the format of the output of --once
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: OutputFormat,
    #[command(flatten)]
    endpoint: Endpoint,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Column {
    Cpu,
    Memory,
    Name,
}

/// A line: a pod, or a container of the pod above it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct PodUsage {
    namespace: String,
    pod: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<String>,
    id: String,
    /// Thousandths of a core.
    cpu_millicores: Option<u64>,
    memory_working_set_bytes: Option<u64>,
    memory_available_bytes: Option<u64>,
    processes: Option<u64>,
}

/// The processor time of each object at a time, both in nanoseconds.
type Times = HashMap<String, (i64, u64)>;

pub(super) fn run(args: TopArgs) -> ExitCode {
    run_command(show(args))
}

async fn show(args: TopArgs) -> Result<String, String> {
    let mut node = NodeClient::connect(args.endpoint.clone()).await?;
    let is_live = std::io::stdout().is_terminal() && !args.once && args.output == OutputFormat::Text;
    let first = sample(&mut node).await?;
    let mut before = times(&first);
    tokio::time::sleep(ONE_SAMPLE).await;
    loop {
        let stats = sample(&mut node).await?;
        let rows = rows(&args, &stats, &before);
        if !is_live {
            return match args.output {
                OutputFormat::Json => json(&rows),
                OutputFormat::Text => Ok(text(&rows)),
            };
        }
        before = times(&stats);
        // The cursor moves to the top, and each line and the rest of the screen are erased (ECMA-48: CUP, EL, ED). A
        // longer table than the screen would scroll.
        let height = usize::from(height().saturating_sub(1));
        let lines: Vec<String> =
            text(&rows).lines().take(height).map(|line| format!("{line}\x1b[K")).collect();
        let screen = format!("\x1b[H{}\x1b[J", lines.join("\n"));
        let mut stdout = std::io::stdout().lock();
        if stdout.write_all(screen.as_bytes()).and_then(|()| stdout.flush()).is_err() {
            return Ok(String::new());
        }
        drop(stdout);
        tokio::time::sleep(Duration::from_secs(args.interval)).await;
    }
}

/// The lines of the terminal.
fn height() -> u16 {
    rustix::termios::tcgetwinsize(std::io::stdout()).map_or(24, |size| size.ws_row.max(2))
}

async fn sample(node: &mut NodeClient) -> Result<Vec<PodSandboxStats>, String> {
    let request = ListPodSandboxStatsRequest { filter: None };
    Ok(answer("get statistics", node.runtime.list_pod_sandbox_stats(request)).await?.stats)
}

fn containers(pod: &PodSandboxStats) -> impl Iterator<Item = &ContainerStats> {
    pod.linux.iter().flat_map(|linux| &linux.containers)
}

fn number(value: Option<&UInt64Value>) -> Option<u64> {
    value.map(|value| value.value)
}

fn processor_time(cpu: Option<&CpuUsage>) -> Option<(i64, u64)> {
    let cpu = cpu?;
    Some((cpu.timestamp, number(cpu.usage_core_nano_seconds.as_ref())?))
}

fn pod_id(pod: &PodSandboxStats) -> &str {
    pod.attributes.as_ref().map_or("", |attributes| &attributes.id)
}

fn container_id(container: &ContainerStats) -> &str {
    container.attributes.as_ref().map_or("", |attributes| &attributes.id)
}

fn times(stats: &[PodSandboxStats]) -> Times {
    let mut times = Times::new();
    for pod in stats {
        let own = processor_time(pod.linux.as_ref().and_then(|linux| linux.cpu.as_ref()));
        times.extend(own.map(|own| (pod_id(pod).to_owned(), own)));
        let of_containers = containers(pod).filter_map(|container| {
            Some((container_id(container).to_owned(), processor_time(container.cpu.as_ref())?))
        });
        times.extend(of_containers);
    }
    times
}

/// Returns thousandths of a core between two samples.
fn millicores(before: Option<&(i64, u64)>, now: Option<(i64, u64)>) -> Option<u64> {
    let ((start, used_before), (end, used)) = (*before?, now?);
    let elapsed = u64::try_from(end.checked_sub(start)?).ok().filter(|elapsed| *elapsed > 0)?;
    used.checked_sub(used_before)?.checked_mul(1000)?.checked_div(elapsed)
}

fn with_memory(row: PodUsage, memory: Option<&MemoryUsage>) -> PodUsage {
    PodUsage {
        memory_working_set_bytes: memory.and_then(|memory| number(memory.working_set_bytes.as_ref())),
        memory_available_bytes: memory.and_then(|memory| number(memory.available_bytes.as_ref())),
        ..row
    }
}

fn rows(args: &TopArgs, stats: &[PodSandboxStats], before: &Times) -> Vec<PodUsage> {
    let mut groups: Vec<(PodUsage, Vec<PodUsage>)> = Vec::new();
    for pod in stats {
        let metadata = pod.attributes.as_ref().and_then(|attributes| attributes.metadata.clone());
        let metadata = metadata.unwrap_or_default();
        if args.namespace.as_ref().is_some_and(|wanted| *wanted != metadata.namespace) {
            continue;
        }
        let linux = pod.linux.as_ref();
        let id = pod_id(pod);
        let row = PodUsage {
            namespace: metadata.namespace,
            pod: metadata.name,
            container: None,
            id: id.to_owned(),
            cpu_millicores: millicores(
                before.get(id),
                processor_time(linux.and_then(|linux| linux.cpu.as_ref())),
            ),
            memory_working_set_bytes: None,
            memory_available_bytes: None,
            processes: linux
                .and_then(|linux| linux.process.as_ref())
                .and_then(|process| number(process.process_count.as_ref())),
        };
        let row = with_memory(row, linux.and_then(|linux| linux.memory.as_ref()));
        let of_pod = containers(pod).filter(|_| !args.pods).map(|container| {
            let id = container_id(container);
            let name = container.attributes.as_ref().and_then(|attributes| attributes.metadata.as_ref());
            let own = PodUsage {
                container: Some(name.map(|metadata| metadata.name.clone()).unwrap_or_default()),
                id: id.to_owned(),
                cpu_millicores: millicores(before.get(id), processor_time(container.cpu.as_ref())),
                processes: None,
                ..row.clone()
            };
            with_memory(own, container.memory.as_ref())
        });
        let mut of_pod: Vec<PodUsage> = of_pod.collect();
        sort(&mut of_pod, args.sort, |row| row);
        groups.push((row.clone(), of_pod));
    }
    sort(&mut groups, args.sort, |(pod, _)| pod);
    groups.into_iter().flat_map(|(pod, containers)| std::iter::once(pod).chain(containers)).collect()
}

fn sort<T>(rows: &mut [T], by: Column, row: impl Fn(&T) -> &PodUsage) {
    let name = |of: &PodUsage| (of.namespace.clone(), of.pod.clone(), of.container.clone());
    rows.sort_by(|a, b| {
        let (a, b) = (row(a), row(b));
        let order = match by {
            Column::Cpu => b.cpu_millicores.cmp(&a.cpu_millicores),
            Column::Memory => b.memory_working_set_bytes.cmp(&a.memory_working_set_bytes),
            Column::Name => std::cmp::Ordering::Equal,
        };
        order.then_with(|| name(a).cmp(&name(b)))
    });
}

fn text(rows: &[PodUsage]) -> String {
    let titles = ["NAMESPACE", "POD", "CONTAINER", "CPU", "MEMORY", "OF LIMIT", "TASKS"];
    let mut lines = vec![titles.map(str::to_owned)];
    let unknown = || "-".to_owned();
    lines.extend(rows.iter().map(|row| {
        [
            row.namespace.clone(),
            row.pod.clone(),
            row.container.clone().unwrap_or_else(unknown),
            row.cpu_millicores.map_or_else(unknown, |cpu| format!("{cpu}m")),
            row.memory_working_set_bytes.map_or_else(unknown, size),
            share(row).map_or_else(unknown, |share| format!("{share}%")),
            row.processes.map_or_else(unknown, |processes| processes.to_string()),
        ]
    }));
    table(&lines)
}

/// The share of the memory limit in percent.
fn share(row: &PodUsage) -> Option<u64> {
    let (used, available) = (row.memory_working_set_bytes?, row.memory_available_bytes?);
    used.checked_mul(100)?.checked_div(used.checked_add(available)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(pod: &str, cpu: Option<u64>, memory: u64) -> PodUsage {
        PodUsage {
            namespace: "default".to_owned(),
            pod: pod.to_owned(),
            container: None,
            id: pod.to_owned(),
            cpu_millicores: cpu,
            memory_working_set_bytes: Some(memory),
            memory_available_bytes: Some(3 * memory),
            processes: Some(2),
        }
    }

    #[test]
    fn the_rate_is_between_two_samples() {
        let second = 1_000_000_000;
        assert_eq!(millicores(Some(&(0, 0)), Some((second, 250_000_000))), Some(250));
        assert_eq!(millicores(None, Some((second, 1))), None, "a new container has no rate");
        assert_eq!(millicores(Some(&(5, 0)), Some((5, 1))), None, "no time has passed");
        assert_eq!(millicores(Some(&(0, 9)), Some((5, 1))), None, "a new cgroup counts from zero");
    }

    #[test]
    fn the_largest_is_first() {
        let mut rows = vec![row("a", None, 10), row("b", Some(5), 20), row("c", Some(7), 5)];
        let order = |rows: &[PodUsage]| rows.iter().map(|row| row.pod.clone()).collect::<String>();
        sort(&mut rows, Column::Cpu, |row| row);
        assert_eq!(order(&rows), "cba");
        sort(&mut rows, Column::Memory, |row| row);
        assert_eq!(order(&rows), "bac");
        sort(&mut rows, Column::Name, |row| row);
        assert_eq!(order(&rows), "abc");
    }

    #[test]
    fn unknown_figures_are_dashes() {
        let lines = text(&[row("a", None, 1 << 20)]);
        assert_eq!(
            lines.lines().nth(1).unwrap().split_whitespace().collect::<Vec<_>>(),
            ["default", "a", "-", "-", "1.0", "MiB", "25%", "2"]
        );
    }
}
