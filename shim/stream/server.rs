//! The HTTP server that clients of Exec, Attach and PortForward connect to: by the token in the path a request becomes a
//! session, and its connection that session's own.

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

use super::activity::Watched;
use super::command::Work;
use super::source::Sources;
use super::token::Request;
use super::upgrade::{Agreed, Purpose, Refusal, agree};
use super::waiting::{Place, Waiting};
use super::websocket::tunnel;
use super::{clients, forwarder, tls};
use crate::daemon::Shared;

/// How long a connection may take to become a session: TLS, the whole request and its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long nothing may go over a session (as the peers have it).
const IDLE: Duration = Duration::from_secs(4 * 60 * 60);

/// Sessions at once. Each has its buffers, within a megabyte or two.
const MAX_SESSIONS: usize = 2048;

/// Connections that have not been taken yet. The kernel has a limit of its own (`net.core.somaxconn`).
const QUEUE: u32 = 4096;

/// The most headers of a request, and bytes of them.
const MAX_HEADERS: usize = 64;
const MAX_HEAD: usize = 64 << 10;

/// After how long the kernel looks whether a silent peer is still there, and how often until it is given up.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// Nothing can listen there.
    #[error("stream_address {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// The certificate or its key.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
}

/// The server before it serves: it listens already.
#[derive(Debug)]
pub struct Listener {
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

impl Listener {
    /// Listens where the configuration says.
    ///
    /// # Errors
    /// The address is taken, or a file of TLS is wrong.
    pub async fn bind(config: &crate::config::Config) -> Result<Self, StreamError> {
        let tls = tls::configured(config)?.map(|acceptor| Arc::new(TlsHandle(acceptor)));
        let address = config.stream_address;
        let failed = |error| StreamError::Listen { address, error };
        let listener = listen(address).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, tls, address })
    }

    /// What all URLs begin with.
    #[must_use]
    pub fn base(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Serves for as long as it is polled.
    pub async fn serve(self, daemon: Shared) {
        tracing::info!(address = %self.address, tls = self.tls.is_some(), "sessions are served");
        let (sources, waiting) = (Sources::open(), Waiting::default());
        let server = Server { daemon, sessions: Arc::new(Semaphore::new(MAX_SESSIONS)) };
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let span = tracing::info_span!("session", %peer, container = Empty, pod = Empty);
                    let place = waiting.enter(sources.of(peer, stream.local_addr().unwrap_or(self.address)));
                    let (server, tls) = (server.clone(), self.tls.clone());
                    tokio::spawn(server.connection(stream, tls, place).instrument(span));
                }
                Err(error) => {
                    // Of a connection that has gone again; or of the process, which has too many files open.
                    tracing::warn!(%error, "accept a connection for a session");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// With a queue for those who come faster than they are taken: whoever finds none is delayed by a second (listen(2)).
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(QUEUE)
}

#[derive(Clone)]
struct Server {
    daemon: Shared,
    sessions: Arc<Semaphore>,
}

impl Server {
    /// Serves a connection until it has become a session, whose task is another.
    async fn connection(self, stream: TcpStream, tls: Option<Arc<TlsHandle>>, place: Place) {
        if let Err(error) = prepare(&stream) {
            tracing::debug!(%error, "prepare a connection");
        }
        let place = Arc::new(place);
        let served = async {
            match tls {
                None => self.http(stream, &place).await,
                Some(tls) => match tls.0.accept(stream).await {
                    Ok(stream) => self.http(stream, &place).await,
                    Err(error) => tracing::debug!(%error, "TLS with a client"),
                },
            }
        };
        tokio::select! {
            served = tokio::time::timeout(PATIENCE, served) => {
                if served.is_err() {
                    tracing::debug!("connection closed: no request in time");
                }
            }
            () = place.closed() => tracing::debug!("connection closed: too many wait for their request"),
        }
    }

    async fn http<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(&self, io: T, place: &Arc<Place>) {
        let service = hyper::service::service_fn(move |request| {
            let (server, place) = (self.clone(), place.clone());
            async move { Ok::<_, Infallible>(server.answer(request, &place)) }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades()
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "a client's request");
        }
    }

    fn answer(&self, request: HttpRequest<Body>, place: &Place) -> Response<Full<Bytes>> {
        match self.begin(request, place) {
            Ok(headers) => {
                let mut response = Response::new(Full::default());
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                *response.headers_mut() = headers;
                response
            }
            Err(Refusal { status, why, headers }) => {
                tracing::debug!(%status, why, "a session is refused");
                let mut response = Response::new(Full::from(why + "\n"));
                *response.status_mut() = status;
                for (name, value) in headers {
                    response.headers_mut().append(name, value);
                }
                // Who was refused asks for a new URL, which is another connection.
                response.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("close"));
                response
            }
        }
    }

    /// Begins the session that a request is for, as soon as its answer is sent.
    fn begin(&self, mut request: HttpRequest<Body>, place: &Place) -> Result<HeaderMap, Refusal> {
        let refuse = |status, why: &str| Refusal { status, why: why.to_owned(), headers: Vec::new() };
        let unknown = || refuse(StatusCode::NOT_FOUND, "there is no such session, or its time is over");
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
            return Err(refuse(StatusCode::METHOD_NOT_ALLOWED, "only GET and POST are for sessions"));
        }
        let (agreed, headers) = agree(purpose, request.headers())?;
        let Ok(permit) = self.sessions.clone().try_acquire_owned() else {
            let mut refusal = refuse(StatusCode::SERVICE_UNAVAILABLE, "there are too many sessions");
            refusal.headers.push((http::header::RETRY_AFTER, HeaderValue::from_static("60")));
            return Err(refusal);
        };
        let session = self.daemon.streams.tokens.redeem(verb, token).ok_or_else(unknown)?;
        place.leave();
        match &session {
            Request::Exec { container, .. } | Request::Attach { container, .. } => {
                tracing::Span::current().record("container", container)
            }
            Request::PortForward { pod, .. } => tracing::Span::current().record("pod", pod),
        };
        let upgrade = hyper::upgrade::on(&mut request);
        let daemon = self.daemon.clone();
        let run = async move {
            match upgrade.await {
                Ok(io) => run(&daemon, Watched::new(TokioIo::new(io)), agreed, session).await,
                Err(error) => tracing::debug!(%error, "a client goes before its session"),
            }
            drop(permit);
        };
        tokio::spawn(run.in_current_span());
        Ok(headers)
    }
}

/// A person's keys are not to be collected into larger packets, and a host that has gone is to be noticed.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE / 4)?;
    sockopt::set_tcp_keepcnt(stream, 4)?;
    Ok(())
}

/// A session, to its end or until nobody has used it for long.
async fn run<T>(daemon: &Shared, io: Watched<T>, agreed: Agreed, request: Request)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let activity = io.activity();
    tokio::select! {
        () = serve(daemon, io, agreed, request) => {}
        () = activity.idle(IDLE) => tracing::info!("nobody has used a session for long: it ends"),
    }
}

async fn serve<T>(daemon: &Shared, io: Watched<T>, agreed: Agreed, request: Request)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match (agreed, request) {
        (agreed, Request::PortForward { pod, ports }) => {
            let Ok(found) = daemon.store.pod(&pod) else { return };
            tokio::select! {
                () = forward(daemon, io, agreed, &pod, &ports) => {}
                // A socket in a network namespace keeps that alive.
                () = found.stopping() => tracing::debug!("the pod stops, and with it what is forwarded to it"),
            }
        }
        (agreed, request) => match (agreed, Work::of(request)) {
            (Agreed::SpdyCommand(version), Some((work, wanted))) => {
                clients::over_spdy(daemon, io, version, &work, wanted).await;
            }
            (Agreed::ChannelsCommand { coding, ending, closes }, Some((work, wanted))) => {
                clients::over_channels(daemon, io, (coding, ending, closes), &work, wanted).await;
            }
            // What is agreed on is by the path, and the token is for that path only.
            (agreed, _) => tracing::error!(?agreed, "a request of another kind"),
        },
    }
}

async fn forward<T>(daemon: &Shared, io: Watched<T>, agreed: Agreed, pod: &str, ports: &[u16])
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match agreed {
        Agreed::SpdyPorts => forwarder::over_spdy(daemon, io, pod).await,
        Agreed::TunnelPorts => forwarder::over_spdy(daemon, tunnel::start(io), pod).await,
        Agreed::ChannelsPorts { coding } => forwarder::over_channels(daemon, io, coding, pod, ports).await,
        Agreed::SpdyCommand(_) | Agreed::ChannelsCommand { .. } => {
            tracing::error!(?agreed, "a request of another kind");
        }
    }
}
