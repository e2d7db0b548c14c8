//! Measures any container runtime that implements the CRI, from outside: the latency for a kubelet and the cost for
//! the node.
//!
//! * [`options`]: the command line
//! * [`client`]: the connection, with the time that each call takes
//! * [`mod@bench`]: the image, the folder and the label of one run, and its pods
//! * [`measure`]: one file for each measurement
//! * [`daemon`]: the cost of an operation for the daemon
//! * [`processes`]: the processes that exist because of a pod, and their memory
//! * [`figures`]: samples, percentiles
//! * [`report`]: the output
//! * [`clean`]: removes everything that the run created
//! * this file: the order of these, and the reasons that end a run early
//! * [`mod@bench`]: one run: its image, folder and label, the pods that it creates, and its results
//! * [`error`]: the errors of the benchmark

mod bench;
mod clean;
mod client;
mod daemon;
mod error;
mod figures;
mod measure;
mod options;
mod processes;
mod report;

use std::process::ExitCode;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use bench::Bench;
use error::BenchError;
use options::Options;

fn main() -> ExitCode {
    let options = Options::parse();
    // The client uses as little as possible of the machine that it measures.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(options)),
        Err(source) => Err(BenchError::File { action: "start", path: "the async runtime".into(), source }),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            report::problem(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> Result<ExitCode, BenchError> {
    let json = options.json;
    let mut bench = Bench::prepare(options).await?;
    let ended = tokio::select! {
        ended = measure::all(&bench) => ended,
        () = tokio::time::sleep(bench.options.max_time()) => Err(BenchError::OutOfTime(bench.options.max_seconds)),
        signal = stopped() => Err(BenchError::Stopped(signal)),
    };
    let cleaned = clean::all(&mut bench).await;
    let mut problems: Vec<String> = bench.take_problems();
    problems.extend(ended.err().map(|error| error.to_string()));
    problems.extend(cleaned.iter().map(ToString::to_string));
    report::print(&bench, &problems, json)?;
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Waits for Ctrl-C or SIGTERM.
async fn stopped() -> &'static str {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        result = tokio::signal::ctrl_c() => match result {
            Ok(()) => "Ctrl-C",
            Err(_) => std::future::pending().await,
        },
        _ = terminate.recv() => "SIGTERM",
    }
}
