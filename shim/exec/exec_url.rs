//! Exec: where a client finds the session in which its command will run.

use berth_proto::v1::ExecRequest;

use super::process::link_of;
use super::session::Wanted;
use crate::daemon::Shared;
use crate::error::CriError;
use crate::stream::Request;

/// The URL of a session for a command in a running container.
///
/// # Errors
/// `NotFound`; `InvalidArgument` without a command or streams, or where a terminal is to have a stderr; `FailedPrecondition`
/// where the container does not run; `ResourceExhausted`.
pub fn exec_url(daemon: &Shared, request: ExecRequest) -> Result<String, CriError> {
    let container = daemon.store.container(&request.container_id)?;
    if request.cmd.is_empty() {
        return Err(CriError::invalid("cmd", "is empty"));
    }
    let ExecRequest { stdin, stdout, stderr, tty, .. } = request;
    let wanted = checked(Wanted { stdin, stdout, stderr, tty })?;
    let _runs = link_of(daemon, &container)?;
    daemon.streams.url(Request::Exec {
        container: container.id.as_str().to_owned(),
        command: request.cmd,
        wanted,
    })
}

/// A session has at least one stream, and a terminal only one for output (CRI `ExecRequest`, `AttachRequest`).
pub(super) fn checked(wanted: Wanted) -> Result<Wanted, CriError> {
    if wanted.tty && wanted.stderr {
        return Err(CriError::invalid("stderr", "cannot be true with tty: a terminal has one output"));
    }
    if !wanted.stdin && !wanted.stdout && !wanted.stderr {
        return Err(CriError::invalid("stdin", "one of stdin, stdout and stderr must be true"));
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn a_session_has_streams_that_go_together() {
        let wanted = |stdin, stdout, stderr, tty| Wanted { stdin, stdout, stderr, tty };
        for right in [wanted(false, true, true, false), wanted(true, true, false, true)] {
            assert_eq!(checked(right), Ok(right));
        }
        for wrong in [wanted(false, false, false, false), wanted(true, true, true, true)] {
            assert_eq!(checked(wrong).unwrap_err().code(), Code::InvalidArgument, "{wrong:?}");
        }
    }
}
