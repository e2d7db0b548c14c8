//! The HTTP server that clients of Exec, Attach and PortForward connect to. A request with a valid token in
//! its path becomes a session, which takes over the connection.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request as HttpRequest, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming as Body;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tracing::Instrument;
use tracing::field::Empty;

use super::activity::TrackedIo;
use super::command::CommandTarget;
use super::source::Sources;
use super::upgrade::{Negotiated, Purpose, Refusal, negotiate};
use super::waiting::{PendingConnection, PendingConnections};
use super::websocket::tunnel;
use super::{clients, forwarder, tls};
use crate::exec::ContainerAccess;
use crate::session_url::{SessionRequest, SessionUrls};
use crate::store::Store;

/// How long a connection may take to become a session: TLS handshake, request and response.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The idle timeout of a session, as in containerd and CRI-O.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4 * 60 * 60);

/// Limit of concurrent sessions. Each uses buffers of one or two megabytes.
const MAX_SESSIONS: usize = 2048;

/// The accept queue. The kernel limits it further (`net.core.somaxconn`).
const QUEUE: u32 = 4096;

/// Limits of a request's headers: their number, and the bytes of its head.
const MAX_HEADERS: usize = 64;
const MAX_HEAD: usize = 64 << 10;

/// How long a connection is silent before the kernel sends keepalive probes.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The address cannot be listened on.
    #[error("failed to listen on stream_address {address}: {error}")]
    Listen {
        /// The address that could not be used.
        address: SocketAddr,
        /// The error of the operating system.
        error: io::Error,
    },
    /// The certificate or its key is invalid.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
}

/// The server, listening but not serving yet.
#[derive(Debug)]
pub struct SessionListener {
    listener: TcpListener,
    tls: Option<Arc<TlsHandle>>,
    address: SocketAddr,
}

struct TlsHandle(TlsAcceptor);

impl std::fmt::Debug for TlsHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsHandle")
    }
}

impl SessionListener {
    /// Listens on the configured address.
    ///
    /// # Errors
    /// The address is in use, or a TLS file is invalid.
    pub async fn bind(config: &crate::config::Config) -> Result<Self, StreamError> {
        let tls = tls::configured(config)?.map(|acceptor| Arc::new(TlsHandle(acceptor)));
        let address = config.stream_address;
        let failed = |error| StreamError::Listen { address, error };
        let listener = listen(address).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, tls, address })
    }

    /// Returns the base of all URLs.
    #[must_use]
    pub fn base(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Serves until the future is dropped.
    pub async fn serve(self, access: ContainerAccess, urls: Arc<SessionUrls>) {
        tracing::info!(address = %self.address, tls = self.tls.is_some(), "streaming server is ready");
        let (sources, pending) = (Sources::open(), PendingConnections::default());
        let server = Server { access, urls, sessions: Arc::new(Semaphore::new(MAX_SESSIONS)) };
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let span = tracing::info_span!("session", %peer, container = Empty, pod = Empty);
                    let slot = pending.add(sources.of(peer, stream.local_addr().unwrap_or(self.address)));
                    let (server, tls) = (server.clone(), self.tls.clone());
                    tokio::spawn(server.connection(stream, tls, slot).instrument(span));
                }
                Err(error) => {
                    // Either the connection is already closed, or the process has too many open files.
                    tracing::warn!(%error, "failed to accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// Listens with a long accept queue: a client that finds it full is delayed by a second (listen(2)).
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(QUEUE)
}

#[derive(Clone)]
struct Server {
    access: ContainerAccess,
    urls: Arc<SessionUrls>,
    sessions: Arc<Semaphore>,
}

impl Server {
    /// Serves a connection until it becomes a session, which runs in another task.
    async fn connection(self, stream: TcpStream, tls: Option<Arc<TlsHandle>>, slot: PendingConnection) {
        if let Err(error) = prepare(&stream) {
            tracing::debug!(%error, "failed to set options of a connection");
        }
        let slot = Arc::new(slot);
        let served = async {
            match tls {
                None => self.http(stream, &slot).await,
                Some(tls) => match tls.0.accept(stream).await {
                    Ok(stream) => self.http(stream, &slot).await,
                    Err(error) => tracing::debug!(%error, "TLS handshake failed"),
                },
            }
        };
        tokio::select! {
            served = tokio::time::timeout(REQUEST_TIMEOUT, served) => {
                if served.is_err() {
                    tracing::debug!("closed a connection: no request in time");
                }
            }
            () = slot.closed() => {
                tracing::debug!("closed a connection: too many connections without a request");
            }
        }
    }

    async fn http<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        io: T,
        slot: &Arc<PendingConnection>,
    ) {
        let service = hyper::service::service_fn(move |request| {
            let (server, slot) = (self.clone(), slot.clone());
            async move { Ok::<_, Infallible>(server.answer(request, &slot)) }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades()
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "failed to serve a request");
        }
    }

    fn answer(&self, request: HttpRequest<Body>, slot: &PendingConnection) -> Response<Full<Bytes>> {
        match self.begin(request, slot) {
            Ok(headers) => {
                let mut response = Response::new(Full::default());
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                *response.headers_mut() = headers;
                response
            }
            Err(Refusal { status, reason, headers }) => {
                tracing::debug!(%status, reason, "refused a session");
                let mut response = Response::new(Full::from(reason + "\n"));
                *response.status_mut() = status;
                for (name, value) in headers {
                    response.headers_mut().append(name, value);
                }
                // A refused client needs a new URL, and connects again for it.
                response.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("close"));
                response
            }
        }
    }

    /// Validates a request and starts its session, which begins when the response was sent.
    fn begin(&self, mut request: HttpRequest<Body>, slot: &PendingConnection) -> Result<HeaderMap, Refusal> {
        let refuse =
            |status, reason: &str| Refusal { status, reason: reason.to_owned(), headers: Vec::new() };
        let unknown = || refuse(StatusCode::NOT_FOUND, "session not found, or its URL has expired");
        let mut parts = request.uri().path().splitn(4, '/').skip(1);
        let (Some(verb), Some(token), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(unknown());
        };
        let purpose = match verb {
            "exec" | "attach" => Purpose::Command,
            "portforward" => Purpose::Ports,
            _ => return Err(unknown()),
        };
        if request.method() != Method::GET && request.method() != Method::POST {
            return Err(refuse(StatusCode::METHOD_NOT_ALLOWED, "sessions accept only GET and POST"));
        }
        let (negotiated, headers) = negotiate(purpose, request.headers())?;
        let Ok(permit) = self.sessions.clone().try_acquire_owned() else {
            let mut refusal = refuse(StatusCode::SERVICE_UNAVAILABLE, "too many sessions");
            refusal.headers.push((http::header::RETRY_AFTER, HeaderValue::from_static("60")));
            return Err(refusal);
        };
        let session = self.urls.redeem(verb, token).ok_or_else(unknown)?;
        slot.leave();
        match &session {
            SessionRequest::Exec { container, .. } | SessionRequest::Attach { container, .. } => {
                tracing::Span::current().record("container", container)
            }
            SessionRequest::PortForward { pod, .. } => tracing::Span::current().record("pod", pod),
        };
        let upgrade = hyper::upgrade::on(&mut request);
        let access = self.access.clone();
        let run = async move {
            match upgrade.await {
                Ok(io) => run(&access, TrackedIo::new(TokioIo::new(io)), negotiated, session).await,
                Err(error) => tracing::debug!(%error, "a client disconnected before its session began"),
            }
            drop(permit);
        };
        tokio::spawn(run.in_current_span());
        Ok(headers)
    }
}

/// Sets TCP options: keystrokes must not be delayed (Nagle), and a dead peer must be noticed.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE / 4)?;
    sockopt::set_tcp_keepcnt(stream, 4)?;
    Ok(())
}

/// Runs a session until it ends or its idle timeout expires.
async fn run<T>(access: &ContainerAccess, io: TrackedIo<T>, negotiated: Negotiated, request: SessionRequest)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let activity = io.activity();
    tokio::select! {
        () = serve(access, io, negotiated, request) => {}
        () = activity.idle(IDLE_TIMEOUT) => tracing::info!("closing an idle session"),
    }
}

async fn serve<T>(access: &ContainerAccess, io: TrackedIo<T>, negotiated: Negotiated, request: SessionRequest)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match (negotiated, request) {
        (negotiated, SessionRequest::PortForward { pod, ports }) => {
            let Ok(stored) = access.store.pod(&pod) else { return };
            tokio::select! {
                () = forward(&access.store, io, negotiated, &pod, &ports) => {}
                // A socket keeps its network namespace alive, so the session must end with the pod.
                () = stored.stopping() => tracing::debug!("the pod stops: ending its port forwarding"),
            }
        }
        (negotiated, request) => match (negotiated, CommandTarget::of(request)) {
            (Negotiated::SpdyCommand(version), Some((target, requested))) => {
                clients::over_spdy(access, io, version, &target, requested).await;
            }
            (Negotiated::ChannelsCommand { coding, report_format, closes }, Some((target, requested))) => {
                clients::over_channels(access, io, (coding, report_format, closes), &target, requested).await;
            }
            // The path determines the protocols, and a token is only valid for its path.
            (negotiated, _) => {
                tracing::error!(?negotiated, "the negotiated protocol does not match the request")
            }
        },
    }
}

async fn forward<T>(store: &Arc<Store>, io: TrackedIo<T>, negotiated: Negotiated, pod: &str, ports: &[u16])
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match negotiated {
        Negotiated::SpdyPorts => forwarder::over_spdy(store, io, pod).await,
        Negotiated::TunnelPorts => forwarder::over_spdy(store, tunnel::start(io), pod).await,
        Negotiated::ChannelsPorts { coding } => forwarder::over_channels(store, io, coding, pod, ports).await,
        Negotiated::SpdyCommand(_) | Negotiated::ChannelsCommand { .. } => {
            tracing::error!(?negotiated, "the negotiated protocol does not match the request");
        }
    }
}
