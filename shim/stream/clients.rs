//! The streams of an exec or attach client: SPDY streams that are identified by a header, or WebSocket
//! channels with fixed numbers.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use super::command::{CommandStreams, CommandTarget, serve};
use super::spdy::{NewStream, SpdySession};
use super::upgrade::{CommandVersion, ReportFormat};
use super::websocket::{Channels, Coding};
use crate::exec::ContainerAccess;
use crate::session_url::RequestedStreams;

/// How long a client may take to open its streams, as in containerd and CRI-O.
pub(super) const STREAM_TIMEOUT: Duration = Duration::from_secs(30);

/// Limit of a client's streams: five, and some more that are reset.
const MAX_STREAMS: usize = 8;

/// Channel numbers (k8s.io/apimachinery, remotecommand); the first three are the process's standard streams.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// Serves a client that uses SPDY.
pub(super) async fn over_spdy<T>(
    access: &ContainerAccess,
    io: T,
    version: CommandVersion,
    target: &CommandTarget,
    requested: RequestedStreams,
) where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut session = SpdySession::start(io, MAX_STREAMS);
    let opened = tokio::time::timeout(STREAM_TIMEOUT, accept_streams(&mut session, version, requested)).await;
    let Ok(Some(client)) = opened else {
        tracing::debug!("a client did not open its streams in time");
        return;
    };
    tokio::select! {
        () = serve(access, target, requested, client) => {}
        () = wait_until_gone(&mut session) => tracing::debug!("a client disconnected before the end"),
    }
    // A client that violated the protocol is notified.
    session.close().await;
}

/// Accepts the streams that the client requested; none if it disconnects before.
async fn accept_streams(
    session: &mut SpdySession,
    version: CommandVersion,
    requested: RequestedStreams,
) -> Option<CommandStreams> {
    let (mut stdin, mut stdout, mut stderr, mut error, mut resize) = (None, None, None, None, None);
    let expects_resize = requested.tty && version.resizes;
    loop {
        let is_ready = |is_requested: bool, stream: &Option<NewStream>| !is_requested || stream.is_some();
        if is_ready(requested.stdin, &stdin)
            && is_ready(requested.stdout, &stdout)
            && is_ready(requested.stderr, &stderr)
            && is_ready(expects_resize, &resize)
            && let Some(error) = error.take()
        {
            let NewStream { outgoing: error, .. } = error;
            return Some(CommandStreams {
                stdin: stdin.map(|stream| stream.incoming),
                stdout: stdout.map(|stream| stream.outgoing),
                stderr: stderr.map(|stream| stream.outgoing),
                error,
                resize: resize.map(|stream| stream.incoming),
                report_format: version.report_format,
            });
        }
        let stream = session.accept().await?;
        let place = match stream.headers.get("streamType") {
            Some("stdin") => &mut stdin,
            Some("stdout") => &mut stdout,
            Some("stderr") => &mut stderr,
            Some("error") => &mut error,
            Some("resize") => &mut resize,
            _ => {
                drop(stream.outgoing.abort().await);
                continue;
            }
        };
        *place = Some(stream);
    }
}

/// Waits until the client disconnects. Further streams are reset.
async fn wait_until_gone(session: &mut SpdySession) {
    while let Some(stream) = session.accept().await {
        drop(stream.outgoing.abort().await);
    }
}

/// Serves a client that uses WebSocket channels.
pub(super) async fn over_channels<T>(
    access: &ContainerAccess,
    io: T,
    (coding, report_format, closes): (Coding, ReportFormat, bool),
    target: &CommandTarget,
    requested: RequestedStreams,
) where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let readable = [requested.stdin.then_some(STDIN), Some(RESIZE)];
    let readable: Vec<u8> = readable.into_iter().flatten().collect();
    let mut channels = Channels::start(io, coding, closes, &readable);
    let client = CommandStreams {
        stdin: channels.incoming(STDIN),
        stdout: requested.stdout.then(|| channels.outgoing(STDOUT)),
        stderr: requested.stderr.then(|| channels.outgoing(STDERR)),
        error: channels.outgoing(ERROR),
        resize: channels.incoming(RESIZE),
        report_format,
    };
    // An empty message tells the client that the streams are ready, as in containerd and CRI-O.
    let first = client.stdout.as_ref().or(client.stderr.as_ref()).unwrap_or(&client.error);
    if first.send(Bytes::new()).await.is_err() {
        return;
    }
    tokio::select! {
        () = serve(access, target, requested, client) => {}
        () = channels.gone() => tracing::debug!("a client disconnected before the end"),
    }
    // A client that violated the protocol is notified.
    channels.close().await;
}
