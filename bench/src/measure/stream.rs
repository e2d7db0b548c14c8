//! Sessions like those of kubectl: an exec of `true` from the request to its exit code, and the throughput in both
//! directions. The client is a separate program with the same Go libraries as kubectl
//! (`tests/stand-ins/streamclient`).

use std::time::Duration;

use berth_proto::v1::NamespaceMode;
use tokio::process::Command;

use super::lifecycle::start_pod;
use crate::bench::{Bench, Isolation};
use crate::error::BenchError;
use crate::figures::Samples;

/// The number of megabytes in each direction.
const MEGABYTES: u32 = 500;

pub(super) async fn measure(bench: &Bench) -> Result<(), BenchError> {
    let (_pod, container) =
        start_pod(bench, "", NamespaceMode::Pod, Isolation::Plain, &mut Samples::default()).await?;
    let count = bench.options.count.to_string();
    let bytes = (u64::from(MEGABYTES) * 1_000_000).to_string();
    for (transport, name) in [("spdy", "SPDY"), ("websocket", "WebSocket")] {
        // Not every runtime supports both transports.
        let took = match client(bench, &["bench", "-transport", transport], &container, &count).await {
            Ok(took) => took,
            Err(error) => {
                bench.add_problem(format!("{name}: {error}"));
                continue;
            }
        };
        let mut samples = Samples::default();
        for took in took {
            samples.push(&format!("exec over {name}"), Duration::from_secs_f64(took / 1e6));
        }
        bench.add(samples);
        for (way, name_of_way) in [("out", "from a container"), ("in", "to a container")] {
            let command = ["throughput", "-transport", transport, "-way", way];
            for rate in client(bench, &command, &container, &bytes).await? {
                bench.add_figure(format!("bytes {name_of_way} over {name}"), rate / 1e6, "MB/s");
            }
        }
    }
    Ok(())
}

/// Runs the client and returns the numbers that it prints.
async fn client(
    bench: &Bench,
    command: &[&str],
    container: &str,
    number: &str,
) -> Result<Vec<f64>, BenchError> {
    let failed = |why: String| BenchError::Client { command: command.join(" "), why };
    let Some(program) = &bench.options.stream_client else {
        return Err(failed("--stream-client is not set".to_owned()));
    };
    let mut client = Command::new(program);
    client.args(command).arg(&bench.options.socket).args([container, number]).kill_on_drop(true);
    let output = client.output().await.map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines()
        .map(|line| line.trim().parse().map_err(|_| failed(format!("invalid output {line:?}"))))
        .collect()
}
