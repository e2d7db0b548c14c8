//! The gRPC server on the unix socket.
//!
//! * [`claim`]: locks the root and state folders for one daemon
//! * [`listener`]: the socket, created here or passed by systemd, and its connections
//! * [`http2`]: rewrites the bytes of a connection into a form that the HTTP/2 server accepts
//! * [`rpc`]: the layer around every call: span, deadline, counters, and one log line per error
//! * [`counters`]: the calls in flight and the answered calls
//! * [`large_answers`]: returns the memory of large answers to the kernel
//! * [`reflection`]: the services that describe this server (reflection, health)
//! * [`mod@connect`]: the client side of the socket, for berth's commands
//! * [`notify`]: notifications to the service manager
//! * [`watchdog`]: health checks for the service manager
//! * [`shutdown`]: signals, and the bounded drain
//! * this file: starts and stops all of these
//! * [`mod@connect`]: the client side of the socket

pub mod claim;
pub mod connect;
pub mod counters;
mod http2;
mod large_answers;
pub mod listener;
pub mod notify;
pub mod reflection;
pub mod rpc;
pub mod shutdown;
pub mod watchdog;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use berth_proto::admin::admin_server::{Admin, AdminServer};
use berth_proto::admin::observer_server::{Observer, ObserverServer};
use berth_proto::v1::image_service_server::{ImageService, ImageServiceServer};
use berth_proto::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use tokio::sync::oneshot;
use tonic::transport::Server;

use crate::config::Config;
use crate::instruments::Instruments;

pub use claim::{Claim, ClaimError};
pub use connect::{ConnectError, connect};
pub use listener::ListenError;

/// The largest request. A pod's config with annotations is below 1 MiB; gRPC clients send at most 16 MiB by
/// default.
const MAX_REQUEST: usize = 16 << 20;

/// The largest answer: ExecSync has two outputs of 16 MiB, and lists grow with the node.
const MAX_ANSWER: usize = 80 << 20;

/// How many calls one connection may have open: the kubelet uses one connection for everything.
const MAX_STREAMS: u32 = 4096;

/// Why the server ended or did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket cannot be created.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The reflection service cannot be built.
    #[error("failed to build the reflection service: {0}")]
    Describe(#[from] tonic_reflection::server::Error),
    /// The signal handlers cannot be installed.
    #[error("failed to install signal handlers: {0}")]
    Signals(std::io::Error),
    /// The server does not answer on its own socket.
    #[error("failed to reach the server on its socket: {0}")]
    NotReady(ConnectError),
    /// The server ended by itself.
    #[error("the server ended unexpectedly: {0}")]
    Ended(String),
}

/// Serves until SIGTERM or SIGINT, then answers the calls in flight, within bounds.
///
/// The caller takes the claim before it reads the state folders. It is released when this returns.
///
/// # Errors
/// The socket cannot be created, or the server ends by itself.
pub async fn serve(
    config: Config,
    claim: Claim,
    runtime: impl RuntimeService,
    images: impl ImageService,
    admin: impl Admin,
    observer: impl Observer,
    instruments: Arc<Instruments>,
) -> Result<(), ServeError> {
    let mut signals = shutdown::Signals::install().map_err(ServeError::Signals)?;
    let listener = listener::listen(&config.socket).await?;
    let counters = Arc::new(counters::Counters::new(instruments));
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
        .add_service(ObserverServer::new(observer))
        .add_service(health)
        .add_service(reflection::v1()?)
        .add_service(reflection::v1alpha()?);
    let (stop, stopped) = oneshot::channel::<()>();
    let socket = listener.socket.clone();
    let mut server = tokio::spawn(router.serve_with_incoming_shutdown(listener.connections(), async move {
        // An error means that the sender was dropped, which also stops the server.
        drop(stopped.await);
    }));
    if let Err(error) = connect::answers(socket.path()).await {
        server.abort();
        return Err(ServeError::NotReady(error));
    }
    tracing::info!(socket = %socket.path().display(), pid = std::process::id(), "ready");
    notify::ready();
    let checks = watchdog::start(socket.path());
    tokio::select! {
        signal = signals.stop() => tracing::info!(signal, "stopping"),
        ended = &mut server => return Err(ServeError::Ended(shutdown::describe(ended))),
    }
    // A stopping server does not answer the checks.
    drop(checks);
    notify::stopping();
    reflection::stop_serving(&reporter).await;
    drop(stop);
    shutdown::drain(&mut server, &counters).await;
    socket.remove();
    counters.log_totals();
    drop(claim);
    Ok(())
}
