//! Attach: where a client finds the session that is connected to a container's own streams.

use berth_proto::v1::AttachRequest;

use super::exec_url::checked;
use super::process::link_of;
use super::session::Wanted;
use crate::daemon::Shared;
use crate::error::CriError;
use crate::stream::Request;

/// The URL of a session with a running container's streams.
///
/// # Errors
/// `NotFound`; `InvalidArgument` without streams, or where a terminal is to have a stderr; `FailedPrecondition` where the
/// container does not run; `ResourceExhausted`.
pub fn attach_url(daemon: &Shared, request: &AttachRequest) -> Result<String, CriError> {
    let container = daemon.store.container(&request.container_id)?;
    let AttachRequest { stdin, stdout, stderr, tty, .. } = *request;
    let wanted = checked(Wanted { stdin, stdout, stderr, tty })?;
    let _runs = link_of(daemon, &container)?;
    daemon.streams.url(Request::Attach { container: container.id.as_str().to_owned(), wanted })
}
