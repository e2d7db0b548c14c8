//! ExecSync: a command in a running container to its end, within a time, for its output.

use std::time::Duration;

use berth_proto::v1::ExecSyncResponse;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

use super::output::Output;
use super::process::{Ends, Process};
use crate::daemon::Shared;
use crate::error::CriError;
use crate::keeper::LinkError;

/// How long output is read after the command has ended, when something that it left behind holds the pipe open.
const DRAIN: Duration = Duration::from_secs(1);

/// Longer than any timeout: about thirty years.
const NEVER: Duration = Duration::from_secs(1 << 30);

/// Runs a command and waits for its end; a `timeout` in seconds of 0 is none.
///
/// # Errors
/// `DeadlineExceeded` after the timeout, when everything the command had started is killed; `FailedPrecondition` where
/// the container does not run; the reason why the command cannot be run.
pub async fn exec_sync(
    daemon: &Shared,
    id: &str,
    command: &[String],
    timeout: i64,
) -> Result<ExecSyncResponse, CriError> {
    let container = daemon.store.container(id)?;
    let span = tracing::Span::current();
    span.record("container", container.id.as_str());
    span.record("pod", container.pod.as_str());
    let (stdout, stdout_end) = output()?;
    let (stderr, stderr_end) = output()?;
    let limit = u64::try_from(timeout).ok().filter(|t| *t > 0).map(Duration::from_secs);
    let deadline = Instant::now() + limit.unwrap_or(NEVER).min(NEVER);
    let ends = Ends { stdout: Some(stdout_end), stderr: Some(stderr_end), ..Ends::default() };
    let too_late = {
        let id = container.id.clone();
        move || CriError::deadline(format!("exec in container {id} after {timeout} s"))
    };
    let starting = Process::start(daemon, container, command.to_vec(), ends);
    // A start that comes too late ends by itself: nobody takes its process.
    let (process, _) = timeout_at(deadline, starting).await.map_err(|_| too_late())??;
    // A task of its own: a caller that goes away does not leave a command without anyone who ends it in time.
    let task = tokio::spawn(run(process, stdout, stderr, deadline).in_current_span());
    match task.await.map_err(|panic| CriError::internal("exec", panic))? {
        Ok(answer) => Ok(answer),
        Err(Unfinished::TooLate) => Err(too_late()),
        Err(Unfinished::Gone) => Err(LinkError::Gone.into()),
    }
}

fn output() -> Result<(Output, std::os::fd::OwnedFd), CriError> {
    Output::new().map_err(|error| CriError::internal("make a pipe", error))
}

enum Unfinished {
    TooLate,
    Gone,
}

async fn run(
    mut process: Process,
    mut stdout: Output,
    mut stderr: Output,
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
            // What holds the pipe open now is not the command: its output is not waited for long.
            drop(timeout_at(deadline.min(Instant::now() + DRAIN), reading).await);
        }
        ended
    };
    match ended {
        Ok((Some(exit_code), _)) => {
            process.leave().await;
            Ok(ExecSyncResponse { stdout: stdout.into_kept(), stderr: stderr.into_kept(), exit_code })
        }
        Ok((None, _)) => {
            process.leave().await;
            Err(Unfinished::Gone)
        }
        Err(_elapsed) => {
            process.kill().await;
            Err(Unfinished::TooLate)
        }
    }
}
