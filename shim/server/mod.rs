//! The gRPC server on the unix socket: from the lock on the state folders to the last answer.
//!
//! * [`claim`]: one daemon per root and state folder
//! * [`listener`]: the socket, ours or systemd's, and who connects to it
//! * [`http2`]: the bytes of a connection, made acceptable to the HTTP/2 server
//! * [`rpc`]: the layer around every call: span, deadline, count, and the one log line of an error
//! * [`counters`]: what is in flight and what was answered
//! * [`reflection`]: the services that describe this server (reflection, health)
//! * [`connect`]: a client's side of the socket, for berth's own commands
//! * [`notify`]: what the service manager is told
//! * [`shutdown`]: signals, and the bounded drain
//! * this file: how these come together

pub mod claim;
pub mod connect;
pub mod counters;
mod http2;
pub mod listener;
pub mod notify;
pub mod reflection;
pub mod rpc;
pub mod shutdown;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use berth_proto::admin::admin_server::{Admin, AdminServer};
use berth_proto::v1::image_service_server::{ImageService, ImageServiceServer};
use berth_proto::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use tokio::sync::oneshot;
use tonic::transport::Server;

use crate::config::Config;

pub use claim::{Claim, ClaimError};
pub use connect::{ConnectError, connect};
pub use listener::ListenError;

/// The largest request: a pod's config with annotations is below 1 MiB; gRPC clients send 16 MiB at most by themselves.
const MAX_REQUEST: usize = 16 << 20;

/// The largest answer: ExecSync has two outputs of 16 MiB, and lists grow with the node.
const MAX_ANSWER: usize = 80 << 20;

/// How many calls one connection may have open: the kubelet uses one for everything.
const MAX_STREAMS: u32 = 4096;

/// Why the server ended or did not come up.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// There is no socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Reflection cannot describe the server.
    #[error("describe the services: {0}")]
    Describe(#[from] tonic_reflection::server::Error),
    /// The process cannot be told to stop.
    #[error("watch signals: {0}")]
    Signals(std::io::Error),
    /// The server does not answer on its own socket.
    #[error("the socket does not answer: {0}")]
    NotReady(ConnectError),
    /// The server ended by itself.
    #[error("the server ended: {0}")]
    Ended(String),
}

/// Serves until SIGTERM or SIGINT, then answers what is in flight, within bounds.
///
/// The claim is taken before anything is read from the state folders, which is why it comes from the caller; it is given
/// back when this returns.
///
/// # Errors
/// The socket cannot be had, or the server ends by itself.
pub async fn serve(
    config: Config,
    claim: Claim,
    runtime: impl RuntimeService,
    images: impl ImageService,
    admin: impl Admin,
) -> Result<(), ServeError> {
    let mut signals = shutdown::Signals::install().map_err(ServeError::Signals)?;
    let listener = listener::listen(&config.socket).await?;
    let counters = Arc::new(counters::Counters::default());
    let (reporter, health) = reflection::health().await;
    let router = Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .layer(rpc::RpcLayer::new(counters.clone()))
        .add_service(
            RuntimeServiceServer::new(runtime)
                .max_decoding_message_size(MAX_REQUEST)
                .max_encoding_message_size(MAX_ANSWER),
        )
        .add_service(
            ImageServiceServer::new(images)
                .max_decoding_message_size(MAX_REQUEST)
                .max_encoding_message_size(MAX_ANSWER),
        )
        .add_service(AdminServer::new(admin))
        .add_service(health)
        .add_service(reflection::v1()?)
        .add_service(reflection::v1alpha()?);
    let (stop, stopped) = oneshot::channel::<()>();
    let socket = listener.socket.clone();
    let mut server = tokio::spawn(router.serve_with_incoming_shutdown(listener.connections(), async move {
        // An error is the sender's end, which asks for the same.
        drop(stopped.await);
    }));
    if let Err(error) = connect::answers(socket.path()).await {
        server.abort();
        return Err(ServeError::NotReady(error));
    }
    tracing::info!(socket = %socket.path().display(), pid = std::process::id(), "ready");
    notify::ready();
    tokio::select! {
        signal = signals.stop() => tracing::info!(signal, "stopping"),
        ended = &mut server => return Err(ServeError::Ended(shutdown::describe(ended))),
    }
    notify::stopping();
    reflection::stop_serving(&reporter).await;
    drop(stop);
    shutdown::drain(&mut server, &counters).await;
    socket.remove();
    counters.log_totals();
    drop(claim);
    Ok(())
}
