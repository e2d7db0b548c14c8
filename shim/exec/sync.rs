//! ExecSync: runs a command in a container to its end, within a timeout, and returns its output.

use std::time::Duration;

use berth_proto::v1::ExecSyncResponse;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

use super::access::ContainerAccess;
use super::output::CapturedOutput;
use super::process::{ExecProcess, Stdio};
use crate::error::CriError;
use crate::keeper::KeeperError;

/// How long output is read after the command has ended, if one of its descendants holds the pipe open.
const DRAIN: Duration = Duration::from_secs(1);

/// Stands in for no timeout: about thirty years.
const NEVER: Duration = Duration::from_secs(1 << 30);

/// Runs a command and waits for its end. A `timeout` of 0 seconds means none.
///
/// # Errors
/// `DeadlineExceeded` after the timeout: everything the command started is killed. `FailedPrecondition` if
/// the container does not run; an error with the reason if the command cannot be run.
pub async fn exec_sync(
    access: &ContainerAccess,
    id: &str,
    command: &[String],
    timeout: i64,
) -> Result<ExecSyncResponse, CriError> {
    let container = access.store.container(id)?;
    let span = tracing::Span::current();
    span.record("container", container.id.as_str());
    span.record("pod", container.pod.as_str());
    let (stdout, stdout_end) = new_output()?;
    let (stderr, stderr_end) = new_output()?;
    let limit = u64::try_from(timeout).ok().filter(|t| *t > 0).map(Duration::from_secs);
    let deadline = Instant::now() + limit.unwrap_or(NEVER).min(NEVER);
    let stdio = Stdio { stdout: Some(stdout_end), stderr: Some(stderr_end), ..Stdio::default() };
    let timed_out = {
        let id = container.id.clone();
        move || CriError::deadline(format!("exec in container {id} after {timeout} s"))
    };
    let starting = ExecProcess::start(access, container, command.to_vec(), stdio);
    // If the start finishes too late, the process is dropped, which kills it.
    let (process, _) = timeout_at(deadline, starting).await.map_err(|_| timed_out())??;
    // A separate task: if the caller goes away, the command is still ended in time.
    let task = tokio::spawn(run(process, stdout, stderr, deadline).in_current_span());
    match task.await.map_err(|panic| CriError::internal("exec", panic))? {
        Ok(answer) => Ok(answer),
        Err(Unfinished::TimedOut) => Err(timed_out()),
        Err(Unfinished::KeeperEnded) => Err(KeeperError::Gone.into()),
    }
}

fn new_output() -> Result<(CapturedOutput, std::os::fd::OwnedFd), CriError> {
    CapturedOutput::new().map_err(|error| CriError::internal("create a pipe", error))
}

enum Unfinished {
    TimedOut,
    KeeperEnded,
}

async fn run(
    mut process: ExecProcess,
    mut stdout: CapturedOutput,
    mut stderr: CapturedOutput,
    deadline: Instant,
) -> Result<ExecSyncResponse, Unfinished> {
    let ended = {
        let reading = async { tokio::join!(stdout.read_to_end(), stderr.read_to_end()) };
        tokio::pin!(reading);
        let waiting = async {
            tokio::select! {
                _read = &mut reading => (process.ended().await, true),
                code = process.ended() => (code, false),
            }
        };
        let ended = timeout_at(deadline, waiting).await;
        if let Ok((Some(_), false)) = ended {
            // A descendant of the command holds the pipe open: its output is not waited for long.
            drop(timeout_at(deadline.min(Instant::now() + DRAIN), reading).await);
        }
        ended
    };
    match ended {
        Ok((Some(exit_code), _)) => {
            process.detach().await;
            Ok(ExecSyncResponse { stdout: stdout.into_bytes(), stderr: stderr.into_bytes(), exit_code })
        }
        Ok((None, _)) => {
            process.detach().await;
            Err(Unfinished::KeeperEnded)
        }
        Err(_elapsed) => {
            process.kill().await;
            Err(Unfinished::TimedOut)
        }
    }
}
