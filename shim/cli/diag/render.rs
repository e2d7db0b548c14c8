//! The page of `berth diag` for people: a heading for each part, and only parts that have something to show.

use std::fmt::Display;

use super::page::{NetworkSummary, Page, ProcessSummary};
use super::section::Section;
use crate::cli::format::{short, size, table};

/// Renders a page.
pub(in crate::cli) fn text(page: &Page) -> String {
    let mut text = Text::default();
    heading(&mut text, page);
    text.part("BLOCKED", &page.blocked);
    let operations = page.operations.iter().map(|operation| {
        format!(
            "{} since {}, step {} since {}",
            operation.rpc, operation.since, operation.step, operation.step_since
        )
    });
    text.part("OPERATIONS", operations);
    let containers = page.containers.iter().map(|container| {
        format!(
            "{} {} attempt {} {}",
            container.name,
            container.state,
            container.attempt,
            short(&container.id)
        )
    });
    text.part("CONTAINERS", containers);
    text.section("PROCESSES", &page.processes, |processes| processes_lines(processes));
    text.section("LIMITS AND USAGE", &page.limits, |figures| {
        let rows = figures.iter().map(|figure| {
            let limit = if figure.limit.is_empty() { String::new() } else { format!("of {}", figure.limit) };
            [figure.what.to_owned(), figure.used.clone(), limit]
        });
        lines(&table(&rows.collect::<Vec<_>>()))
    });
    text.section("NETWORK", &page.network, network_lines);
    text.section("MOUNTS", &page.mounts, Clone::clone);
    text.part(
        "LAST EXITS",
        page.exits.iter().map(|exit| {
            let ran =
                if exit.ran.is_empty() { "never started".to_owned() } else { format!("ran {}", exit.ran) };
            let line = format!(
                "{} attempt {} at {}: code {} {}, {ran}  {}",
                exit.container, exit.attempt, exit.at, exit.code, exit.reason, exit.message
            );
            line.trim_end().to_owned()
        }),
    );
    for log in &page.logs {
        text.section(&format!("LOG OF {} ({})", log.container, log.path), &log.lines, Clone::clone);
    }
    text.section("KEEPER", &page.keeper, |keeper| {
        let pid = if keeper.pid > 0 { format!("pid {}", keeper.pid) } else { "not known".to_owned() };
        let mut shown = vec![format!("{pid}, log {}", keeper.log)];
        match &keeper.lines {
            Section::Known(lines) => shown.extend(lines.iter().cloned()),
            Section::Unknown { reason } => shown.push(not_available(reason)),
        }
        shown
    });
    text.0
}

fn heading(text: &mut Text, page: &Page) {
    let image = if page.image.is_empty() { String::new() } else { format!(" of {}", page.image) };
    text.line(&format!("{} {}{image}, attempt {}", page.kind, page.name, page.attempt));
    text.line(&format!("  id      {}", page.id));
    let since = if page.since.is_empty() { String::new() } else { format!(" since {}", page.since) };
    let reason = if page.reason.is_empty() { String::new() } else { format!(": {}", page.reason) };
    text.line(&format!("  state   {}{since}{reason}", page.state));
    for (what, value) in [("pod", &page.pod_id), ("cgroup", &page.cgroup)] {
        if !value.is_empty() {
            text.line(&format!("  {what:6}  {value}"));
        }
    }
}

fn processes_lines(processes: &[ProcessSummary]) -> Vec<String> {
    if processes.is_empty() {
        return Vec::new();
    }
    let mut rows =
        vec![["PID", "OF", "STATE", "WAITS IN", "THREADS", "MEMORY", "COMMAND"].map(str::to_owned)];
    rows.extend(processes.iter().map(|process| {
        [
            process.pid.to_string(),
            if process.exec.is_empty() { process.of.clone() } else { format!("{} (exec)", process.of) },
            process.state.clone(),
            process.waits_in.clone(),
            process.threads.to_string(),
            size(process.resident_bytes),
            process.command.clone(),
        ]
    }));
    let mut shown = lines(&table(&rows));
    let stuck = processes.iter().filter(|process| !process.kernel_stack.is_empty());
    shown.extend(
        stuck.map(|process| format!("stack of {}: {}", process.pid, process.kernel_stack.join(" < "))),
    );
    shown
}

fn network_lines(network: &NetworkSummary) -> Vec<String> {
    let mut shown = Vec::new();
    let mut add = |what: &str, values: &[String]| {
        shown.extend(values.iter().map(|value| format!("{what:9}  {value}")));
    };
    add("network", std::slice::from_ref(&network.network));
    add("addresses", &network.addresses);
    add("host port", &network.host_ports);
    for (what, section) in [("link", &network.links), ("nftables", &network.rules)] {
        match section {
            Section::Known(values) => add(what, values),
            Section::Unknown { reason } => add(what, &[not_available(reason)]),
        }
    }
    shown
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

fn not_available(reason: &str) -> String {
    format!("not available: {reason}")
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn line(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }

    fn part(&mut self, title: &str, lines: impl IntoIterator<Item = impl Display>) {
        let mut lines = lines.into_iter().peekable();
        if lines.peek().is_none() {
            return;
        }
        self.line(&format!("\n{title}"));
        lines.for_each(|line| self.line(&format!("  {line}")));
    }

    fn section<T>(&mut self, title: &str, section: &Section<T>, show: impl FnOnce(&T) -> Vec<String>) {
        match section {
            Section::Known(value) => self.part(title, show(value)),
            Section::Unknown { reason } => self.part(title, [not_available(reason)]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::page::{ExitSummary, Figure, KeeperSummary, Log, OperationSummary};
    use super::*;

    #[test]
    fn a_page_has_only_parts_with_content() {
        let page = Page {
            kind: "container",
            id: "cd".repeat(32),
            name: "default/web/main".to_owned(),
            attempt: 2,
            image: "busybox:1".to_owned(),
            state: "running".to_owned(),
            since: "2026-11-27T16:00:00.000Z".to_owned(),
            reason: String::new(),
            pod_id: "ab".repeat(32),
            cgroup: "/kubepods/x".to_owned(),
            blocked: vec!["the cgroup of main is frozen".to_owned()],
            operations: vec![OperationSummary {
                rpc: "StopContainer".to_owned(),
                step: "kill".to_owned(),
                since: "then".to_owned(),
                step_since: "now".to_owned(),
                step_milliseconds: 2,
            }],
            plugins: Vec::new(),
            containers: Vec::new(),
            processes: Section::Unknown { reason: "too slow".to_owned() },
            limits: Section::Known(vec![Figure {
                what: "memory",
                used: "3.0 MiB".to_owned(),
                limit: "64.0 MiB".to_owned(),
            }]),
            network: Section::Known(NetworkSummary {
                network: "berth".to_owned(),
                addresses: vec!["10.0.0.2".to_owned()],
                rules: Section::Unknown { reason: "no nftables".to_owned() },
                ..NetworkSummary::default()
            }),
            mounts: Section::default(),
            logs: vec![Log {
                container: "main".to_owned(),
                path: "/l".to_owned(),
                lines: Section::Known(vec!["hello".to_owned()]),
            }],
            exits: vec![ExitSummary {
                container: "main".to_owned(),
                attempt: 1,
                code: 137,
                reason: "OOMKilled".to_owned(),
                message: String::new(),
                at: "before".to_owned(),
                ran: "5m".to_owned(),
            }],
            keeper: Section::Known(KeeperSummary { pid: 7, log: "/k".to_owned(), lines: Section::default() }),
        };
        let expected = format!(
            "container default/web/main of busybox:1, attempt 2\n  id      {}\n  state   running since \
             2026-11-27T16:00:00.000Z\n  pod     {}\n  cgroup  /kubepods/x\n\nBLOCKED\n  the cgroup of main is frozen\n\n\
             OPERATIONS\n  StopContainer since then, step kill since now\n\nPROCESSES\n  not available: too slow\n\n\
             LIMITS AND USAGE\n  memory  3.0 MiB  of 64.0 MiB\n\nNETWORK\n  network    berth\n  addresses  10.0.0.2\n  \
             nftables   not available: no nftables\n\nLAST EXITS\n  main attempt 1 at before: code 137 OOMKilled, ran 5m\n\n\
             LOG OF main (/l)\n  hello\n\nKEEPER\n  pid 7, log /k\n",
            "cd".repeat(32),
            "ab".repeat(32),
        );
        assert_eq!(text(&page), expected);
    }
}
