//! Pods per second, several at a time, as on a node that starts.

use std::time::Instant;

use berth_proto::v1::NamespaceMode;
use futures_util::{StreamExt, TryStreamExt};

use super::lifecycle::start_pod;
use crate::bench::{Bench, Isolation, Pod};
use crate::error::BenchError;
use crate::figures::{Samples, number};

/// The number of rounds of `--parallel` pods.
const ROUNDS: usize = 4;

pub(super) async fn measure(bench: &Bench) -> Result<(), BenchError> {
    let parallel = usize::from(bench.options.parallel);
    let count = parallel * ROUNDS;
    let start = Instant::now();
    start_pods(bench, count).await?;
    let took = start.elapsed();
    bench.add_figure(format!("pods up, {parallel} at a time"), number(count) / took.as_secs_f64(), "pods/s");
    Ok(())
}

/// Starts pods with one container each, `--parallel` at a time.
pub(super) async fn start_pods(bench: &Bench, count: usize) -> Result<Vec<(Pod, String)>, BenchError> {
    futures_util::stream::iter(0..count)
        .map(|_| async {
            // The times of parallel calls are not representative for a single call.
            start_pod(bench, "", NamespaceMode::Pod, Isolation::Plain, &mut Samples::default()).await
        })
        .buffer_unordered(usize::from(bench.options.parallel))
        .try_collect()
        .await
}
