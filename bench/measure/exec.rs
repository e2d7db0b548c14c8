//! ExecSync in one container, again and again.

use berth_proto::v1::{ExecSyncRequest, NamespaceMode};

use super::lifecycle::up;
use crate::bench::{Bench, Isolation};
use crate::client::timed;
use crate::error::BenchError;
use crate::figures::Samples;

/// How many execs for each of `--count`.
const EACH: u32 = 5;

pub(super) async fn measure(bench: &Bench) -> Result<(), BenchError> {
    let (_pod, container) =
        up(bench, "", NamespaceMode::Pod, Isolation::Plain, &mut Samples::default()).await?;
    let mut samples = Samples::default();
    for _ in 0..bench.options.count.saturating_mul(EACH) {
        let request =
            ExecSyncRequest { container_id: container.clone(), cmd: vec!["true".to_owned()], timeout: 10 };
        let exec = timed("ExecSync", bench.client.runtime.clone().exec_sync(request)).await?;
        if exec.answer.exit_code != 0 {
            return Err(BenchError::Answer { rpc: "ExecSync", what: "exit code 0 for `true`" });
        }
        samples.push("ExecSync", exec.took);
    }
    bench.add(samples);
    Ok(())
}
