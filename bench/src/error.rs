//! The errors of the benchmark.

use std::path::PathBuf;

/// The cause of a failed measurement.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    /// The socket cannot be reached.
    #[error("failed to connect to {}: {why}", path.display())]
    Connect { path: PathBuf, why: String },
    /// The runtime returned an error.
    #[error("failed to call {rpc}: {:?}: {}", .status.code(), .status.message())]
    Rpc { rpc: &'static str, status: Box<tonic::Status> },
    /// An answer does not contain a required value.
    #[error("invalid answer of {rpc}: {what} is missing")]
    Answer { rpc: &'static str, what: &'static str },
    /// An operation on a file or folder of the bench failed.
    #[error("failed to {action} {}: {source}", path.display())]
    File { action: &'static str, path: PathBuf, source: std::io::Error },
    /// The container's log differs from the container's output.
    #[error("the log contains {found} bytes, but the container wrote {wrote}")]
    LogDiffers { found: u64, wrote: u64 },
    /// The client of streaming sessions failed.
    #[error("failed to run streamclient {command}: {why}")]
    Client { command: String, why: String },
    /// The program that loads nftables rules failed.
    #[error("failed to run nft -f: {0}")]
    Nft(String),
    /// An operation did not finish in time.
    #[error("{0} took longer than {1} s")]
    TooSlow(String, u64),
    /// The whole run took too long.
    #[error("stopped after {0} s (--max-seconds): the remaining measurements are missing")]
    OutOfTime(u64),
    /// The user stopped the run.
    #[error("stopped by {0}: the remaining measurements are missing")]
    Stopped(&'static str),
    /// The report cannot be written.
    #[error("failed to write the report: {0}")]
    Report(String),
    /// Some objects could not be removed.
    #[error("failed to remove {0}")]
    Left(String),
}
