//! Why a measurement cannot be made.

use std::path::PathBuf;

/// What went wrong, with what.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    /// Nobody answers at the socket.
    #[error("connect to {}: {why}", path.display())]
    Connect { path: PathBuf, why: String },
    /// The runtime answered with an error.
    #[error("{rpc}: {:?}: {}", .status.code(), .status.message())]
    Rpc { rpc: &'static str, status: Box<tonic::Status> },
    /// An answer has not what it must have.
    #[error("{rpc}: the answer has no {what}")]
    Answer { rpc: &'static str, what: &'static str },
    /// A file or folder of the bench's own.
    #[error("{action} {}: {source}", path.display())]
    File { action: &'static str, path: PathBuf, source: std::io::Error },
    /// The container's log is not what the container wrote.
    #[error("the log has {found} bytes in whole lines where the container wrote {wrote}")]
    LogDiffers { found: u64, wrote: u64 },
    /// The client of streaming sessions.
    #[error("streamclient {command}: {why}")]
    Client { command: String, why: String },
    /// The program that makes rules.
    #[error("nft -f: {0}")]
    Nft(String),
    /// Something did not happen in time.
    #[error("{0} took longer than {1} s")]
    TooSlow(String, u64),
    /// The whole run took too long.
    #[error("ended after {0} s (--max-seconds): what was not measured by then is missing")]
    OutOfTime(u64),
    /// The user stopped it.
    #[error("stopped by {0}: what was not measured by then is missing")]
    Stopped(&'static str),
    /// The report cannot be written.
    #[error("write the report: {0}")]
    Report(String),
    /// Something is left.
    #[error("could not remove {0}")]
    Left(String),
}
