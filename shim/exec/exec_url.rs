//! Exec: creates the URL of a session with a new command in a container.

use berth_proto::v1::ExecRequest;

use super::access::keeper_of;
use crate::error::CriError;
use crate::session_url::{RequestedStreams, SessionRequest, SessionUrls};
use crate::store::Store;

/// Returns the URL of a session with a command in a running container.
///
/// # Errors
/// `NotFound`; `InvalidArgument` if the command is empty, no stream is requested, or stderr with a terminal;
/// `FailedPrecondition` if the container does not run; `ResourceExhausted`.
pub fn create(store: &Store, sessions: &SessionUrls, request: ExecRequest) -> Result<String, CriError> {
    let container = store.container(&request.container_id)?;
    if request.cmd.is_empty() {
        return Err(CriError::invalid("cmd", "is empty"));
    }
    let ExecRequest { stdin, stdout, stderr, tty, .. } = request;
    let requested = validated(RequestedStreams { stdin, stdout, stderr, tty })?;
    let _running = keeper_of(store, &container)?;
    sessions.url(SessionRequest::Exec {
        container: container.id.as_str().to_owned(),
        command: request.cmd,
        requested,
    })
}

/// Checks the requested streams: at least one, and no stderr with a terminal (CRI `ExecRequest`,
/// `AttachRequest`).
pub(super) fn validated(requested: RequestedStreams) -> Result<RequestedStreams, CriError> {
    if requested.tty && requested.stderr {
        return Err(CriError::invalid("stderr", "cannot be true with tty: a terminal has one output"));
    }
    if !requested.stdin && !requested.stdout && !requested.stderr {
        return Err(CriError::invalid("stdin", "one of stdin, stdout and stderr must be true"));
    }
    Ok(requested)
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn only_valid_combinations_of_streams_are_accepted() {
        let streams = |stdin, stdout, stderr, tty| RequestedStreams { stdin, stdout, stderr, tty };
        for valid in [streams(false, true, true, false), streams(true, true, false, true)] {
            assert_eq!(validated(valid), Ok(valid));
        }
        for invalid in [streams(false, false, false, false), streams(true, true, true, true)] {
            assert_eq!(validated(invalid).unwrap_err().code(), Code::InvalidArgument, "{invalid:?}");
        }
    }
}
