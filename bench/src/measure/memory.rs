//! The memory of the daemon and of the processes beside a pod's containers.

use std::collections::BTreeMap;
use std::time::Duration;

use super::parallel::start_pods;
use crate::bench::Bench;
use crate::error::BenchError;
use crate::figures::number;
use crate::processes::{all, beside, read};

/// The number of pods. Memory that they share counts little in each.
const PODS: usize = 10;

/// After this time a runtime has settled: threads of the start have exited, and a garbage collector has run.
const SETTLE: Duration = Duration::from_secs(2);

pub(super) async fn measure(bench: &Bench) -> Result<(), BenchError> {
    daemon(bench, "daemon, PSS at first");
    let pods = start_pods(bench, PODS).await?;
    tokio::time::sleep(SETTLE).await;
    let ids: Vec<String> = pods.into_iter().flat_map(|(pod, container)| [pod.id, container]).collect();
    let found = beside(&all(), &ids, bench.daemon);
    if found.is_empty() {
        bench.add_problem("Memory: no process of the pods was found".to_owned());
        return Ok(());
    }
    let each = |sum: u64| number(sum) / number(PODS);
    let mut by_name = BTreeMap::<&str, u64>::new();
    for process in &found {
        *by_name.entry(&process.name).or_default() += process.pss_kb;
    }
    bench.add_figure("a pod, PSS beside its containers", each(by_name.values().sum()), "kB");
    for (name, sum) in by_name {
        bench.add_figure(format!("  of it {name}"), each(sum), "kB");
    }
    bench.add_figure("a pod, processes beside its containers", number(found.len()) / number(PODS), "");
    daemon(bench, &format!("daemon, PSS with {PODS} pods"));
    Ok(())
}

/// Records the daemon's current memory.
pub(super) fn daemon(bench: &Bench, name: &str) {
    match bench.daemon.and_then(read) {
        Some(process) => bench.add_figure(name, number(process.pss_kb) / 1024.0, "MiB"),
        None => bench.add_problem("Memory: the daemon's pid is unknown (--daemon-pid)".to_owned()),
    }
}
