//! Pods a second, several at a time: a node that starts.

use std::time::Instant;

use berth_proto::v1::NamespaceMode;
use futures_util::{StreamExt, TryStreamExt};

use super::lifecycle::up;
use crate::bench::{Bench, Isolation, Pod};
use crate::error::BenchError;
use crate::figures::{Samples, number};

/// How many rounds of `--parallel` pods.
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
            // How long each takes while others do the same says nothing about one.
            up(bench, "", NamespaceMode::Pod, Isolation::Plain, &mut Samples::default()).await
        })
        .buffer_unordered(usize::from(bench.options.parallel))
        .try_collect()
        .await
}
