//! The socket of the metrics and its connections. Every connection serves one request within a time limit. If there are
//! too many, the oldest is closed: a client that does not send or read cannot keep others away.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::AbortHandle;

use super::sources::ScrapeSources;
use crate::config::MetricsAddress;
use crate::descriptors;
use crate::server::ListenError;
use crate::server::listener::{Socket, bind};

/// The time limit of a connection: a request of some hundred bytes, a response of some hundred kilobytes.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// The most connections at a time. Usually there is one.
const MAX_CONNECTIONS: usize = 16;

/// Limits of a request's headers: their number, and the bytes of its head (hyper's minimum).
const MAX_HEADERS: usize = 32;
const MAX_HEAD: usize = 8 << 10;

/// The pause after an error of accept(2), which concerns one connection or a temporary lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why metrics cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ExpositionError {
    /// The TCP address cannot be used.
    #[error("failed to listen on metrics_address {address}: {error}")]
    Listen {
        /// The address.
        address: MetricsAddress,
        /// The error of the operating system.
        error: io::Error,
    },
    /// The unix socket cannot be used.
    #[error("invalid metrics_address: {0}")]
    Socket(#[from] ListenError),
}

#[derive(Debug)]
enum BoundSocket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// The listening socket of the metrics.
#[derive(Debug)]
pub struct MetricsListener {
    inner: BoundSocket,
    socket: Option<Socket>,
}

impl MetricsListener {
    /// Listens on the configured address. A stale unix socket is replaced.
    ///
    /// # Errors
    /// The address is in use or cannot be used.
    pub async fn bind(address: &MetricsAddress) -> Result<Self, ExpositionError> {
        let failed = |error| ExpositionError::Listen { address: address.clone(), error };
        match address {
            MetricsAddress::Tcp(tcp) => {
                let listener = TcpListener::bind(tcp).await.map_err(failed)?;
                if let Ok(address) = listener.local_addr() {
                    tracing::info!(%address, "serving metrics");
                }
                Ok(Self { inner: BoundSocket::Tcp(listener), socket: None })
            }
            MetricsAddress::Unix(path) => {
                let (listener, socket) = bind(path)?;
                listener.set_nonblocking(true).map_err(failed)?;
                let listener = UnixListener::from_std(listener).map_err(failed)?;
                tracing::info!(%address, "serving metrics");
                Ok(Self { inner: BoundSocket::Unix(listener), socket: Some(socket) })
            }
        }
    }

    /// Returns the unix socket, to remove it at exit.
    #[must_use]
    pub fn socket(&self) -> Option<Socket> {
        self.socket.clone()
    }

    /// Serves until the future is dropped.
    pub async fn serve(self, sources: ScrapeSources) {
        let mut connections = VecDeque::new();
        loop {
            let accepted = match &self.inner {
                BoundSocket::Tcp(listener) => {
                    listener.accept().await.map(|(stream, _)| start(&mut connections, &sources, stream))
                }
                BoundSocket::Unix(listener) => {
                    listener.accept().await.map(|(stream, _)| start(&mut connections, &sources, stream))
                }
            };
            if let Err(error) = accepted {
                tracing::warn!(%error, "failed to accept a connection of a metrics client");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Starts to serve a connection. If descriptors are scarce, it is closed: pods need them more.
fn start<T>(connections: &mut VecDeque<AbortHandle>, sources: &ScrapeSources, stream: T)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    if !descriptors::have_room_for_client() {
        tracing::debug!("closed a connection of a metrics client: too few file descriptors are free");
        return;
    }
    connections.retain(|connection| !connection.is_finished());
    while connections.len() >= MAX_CONNECTIONS {
        connections.pop_front().inspect(AbortHandle::abort);
    }
    let served = tokio::spawn(serve_one(sources.clone(), stream));
    connections.push_back(served.abort_handle());
}

/// Serves one request.
async fn serve_one<T>(sources: ScrapeSources, stream: T)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper::service::service_fn(|request| {
        let sources = sources.clone();
        async move { Ok::<_, Infallible>(super::answer(&sources, &request).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIMEOUT, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "failed to serve metrics"),
        Err(_) => tracing::debug!("closed a connection of a metrics client: it took too long"),
    }
}
