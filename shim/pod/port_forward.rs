//! PortForward: returns the URL of a session that forwards connections to ports of a pod.

use berth_proto::v1::PortForwardRequest;

use crate::error::CriError;
use crate::session_url::{SessionRequest, SessionUrls};
use crate::store::{PodState, Store};

/// The most ports of one request: WebSocket channels are numbered with one byte, two for each port.
const MAX_PORTS: usize = 127;

/// Returns the URL of a session for ports of a pod. SPDY clients send their ports later.
///
/// # Errors
/// `NotFound`; `InvalidArgument` for an invalid port; `FailedPrecondition` if the pod is not running;
/// `ResourceExhausted`.
pub fn port_forward_url(
    store: &Store,
    sessions: &SessionUrls,
    request: &PortForwardRequest,
) -> Result<String, CriError> {
    let pod = store.pod(&request.pod_sandbox_id)?;
    if request.port.len() > MAX_PORTS {
        return Err(CriError::invalid("port", format!("has more than {MAX_PORTS} ports")));
    }
    let mut ports = Vec::with_capacity(request.port.len());
    for port in &request.port {
        match u16::try_from(*port) {
            Ok(port @ 1..) => ports.push(port),
            _ => return Err(CriError::invalid("port", format!("{port} is not from 1 to 65535"))),
        }
    }
    if !matches!(pod.state(), PodState::Ready { .. }) {
        return Err(CriError::precondition(format!("pod sandbox {}", pod.id), "it is not running"));
    }
    sessions.url(SessionRequest::PortForward { pod: pod.id.as_str().to_owned(), ports })
}
