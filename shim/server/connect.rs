//! The client side of the socket, for berth's commands and for the daemon's check that it answers before it
//! reports ready.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// How long a daemon may take to answer a health check.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no connection to a daemon.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The connection failed.
    #[error("failed to connect to {}: {}", path.display(), root_cause(.error))]
    Connect {
        /// Path of the socket.
        path: PathBuf,
        /// The error of the connection.
        error: tonic::transport::Error,
    },
    /// The health check failed.
    #[error("failed to check the health of {}: {}", path.display(), .status.message())]
    Unhealthy {
        /// Path of the socket.
        path: PathBuf,
        /// The status of the answer.
        status: Box<tonic::Status>,
    },
}

/// Returns the innermost cause; the outer errors only say "transport error".
fn root_cause(error: &tonic::transport::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// Connects to the daemon at `path`.
///
/// # Errors
/// No process listens there, or the caller may not connect.
pub async fn connect(path: &Path) -> Result<Channel, ConnectError> {
    let target = path.to_owned();
    // The URI is not used: the connector has the path.
    Endpoint::from_static("http://localhost")
        .connect_timeout(PATIENCE)
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let target = target.clone();
            async move { UnixStream::connect(target).await.map(TokioIo::new) }
        }))
        .await
        .map_err(|error| ConnectError::Connect { path: path.to_owned(), error })
}

/// Checks that the daemon at `path` answers and serves.
///
/// # Errors
/// It does not answer, does not serve, or takes too long.
pub async fn answers(path: &Path) -> Result<(), ConnectError> {
    let mut client = HealthClient::new(connect(path).await?);
    let unhealthy = |status| ConnectError::Unhealthy { path: path.to_owned(), status: Box::new(status) };
    let mut request = tonic::Request::new(HealthCheckRequest::default());
    request.set_timeout(PATIENCE);
    let answer = client.check(request).await.map_err(unhealthy)?.into_inner();
    match answer.status() {
        ServingStatus::Serving => Ok(()),
        other => Err(unhealthy(tonic::Status::unavailable(format!("its status is {other:?}")))),
    }
}
