//! ExecSync in one container, one after another, and in parallel like the probes of a full node.

use std::time::{Duration, Instant};

use berth_proto::v1::{ExecSyncRequest, NamespaceMode};
use futures_util::{StreamExt, TryStreamExt};

use super::lifecycle::start_pod;
use crate::bench::{Bench, Isolation};
use crate::client::timed;
use crate::daemon::{self, CostMeter};
use crate::error::BenchError;
use crate::figures::{Samples, number};

/// The number of execs for each of `--count`.
const EACH: u32 = 5;

pub(super) async fn measure(bench: &Bench) -> Result<(), BenchError> {
    let (_pod, container) =
        start_pod(bench, "", NamespaceMode::Pod, Isolation::Plain, &mut Samples::default()).await?;
    let count = bench.options.count.saturating_mul(EACH);
    let mut samples = Samples::default();
    let meter = bench.daemon.map(CostMeter::start);
    for _ in 0..count {
        samples.push("ExecSync", probe(bench, &container).await?);
    }
    let cost = meter.and_then(|meter| meter.cost());
    bench.add(samples);
    if let Some(cost) = cost {
        let each = cost.cpu.as_secs_f64() * 1000.0 / f64::from(count.max(1));
        bench.add_figure("ExecSync: processor time of the daemon".to_owned(), each, "ms");
    }
    let parallel = usize::from(bench.options.parallel);
    let (start, before) = (Instant::now(), daemon::machine());
    futures_util::stream::iter(0..count)
        .map(|_| probe(bench, &container))
        .buffer_unordered(parallel)
        .try_collect::<Vec<_>>()
        .await?;
    let rate = number(count) / start.elapsed().as_secs_f64();
    bench.add_figure(format!("ExecSync, {parallel} at a time"), rate, "a second");
    if let (Some(before), Some(after)) = (before, daemon::machine()) {
        let each = after.saturating_sub(before).as_secs_f64() * 1000.0 / f64::from(count.max(1));
        bench.add_figure("ExecSync: processor time of the machine".to_owned(), each, "ms");
    }
    Ok(())
}

async fn probe(bench: &Bench, container: &str) -> Result<Duration, BenchError> {
    let request =
        ExecSyncRequest { container_id: container.to_owned(), cmd: vec!["true".to_owned()], timeout: 10 };
    let exec = timed("ExecSync", bench.client.runtime.clone().exec_sync(request)).await?;
    if exec.answer.exit_code != 0 {
        return Err(BenchError::Answer { rpc: "ExecSync", what: "exit code 0 for `true`" });
    }
    Ok(exec.took)
}
