//! Attach: creates the URL of a session with a container's own streams.

use berth_proto::v1::AttachRequest;

use super::access::keeper_of;
use super::exec_url::validated;
use crate::error::CriError;
use crate::session_url::{RequestedStreams, SessionRequest, SessionUrls};
use crate::store::Store;

/// Returns the URL of a session with the streams of a running container.
///
/// # Errors
/// `NotFound`; `InvalidArgument` if no stream is requested, or stderr with a terminal; `FailedPrecondition`
/// if the container does not run; `ResourceExhausted`.
pub fn create(store: &Store, sessions: &SessionUrls, request: &AttachRequest) -> Result<String, CriError> {
    let container = store.container(&request.container_id)?;
    let AttachRequest { stdin, stdout, stderr, tty, .. } = *request;
    let requested = validated(RequestedStreams { stdin, stdout, stderr, tty })?;
    let _running = keeper_of(store, &container)?;
    sessions.url(SessionRequest::Attach { container: container.id.as_str().to_owned(), requested })
}
