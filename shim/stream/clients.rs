//! The streams of a client that executes or attaches: SPDY streams that name what they are, or WebSocket channels with
//! fixed numbers.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use super::command::{Client, Work, serve};
use super::spdy::{NewStream, Session};
use super::upgrade::{CommandVersion, Ending};
use super::websocket::{Channels, Coding};
use crate::daemon::Shared;
use crate::exec::session::Wanted;

/// How long a client may take to open its streams (as the peers have it).
pub(super) const CREATION: Duration = Duration::from_secs(30);

/// Streams of a client: five, and some more to be told that they are not wanted.
const MAX_STREAMS: usize = 8;

/// Channels of a client (k8s.io/apimachinery, remotecommand): the first three are those of the process.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// Serves a client that uses SPDY.
pub(super) async fn over_spdy<T>(daemon: &Shared, io: T, version: CommandVersion, work: &Work, wanted: Wanted)
where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut session = Session::start(io, MAX_STREAMS);
    let gathered = tokio::time::timeout(CREATION, gather(&mut session, version, wanted)).await;
    let Ok(Some(client)) = gathered else {
        tracing::debug!("a client did not open its streams");
        return;
    };
    tokio::select! {
        () = serve(daemon, work, wanted, client) => {}
        () = gone(&mut session) => tracing::debug!("a client has gone before the end"),
    }
    // One that broke the protocol is told so.
    session.close().await;
}

/// The streams that the client has said it would open; none when it goes before.
async fn gather(session: &mut Session, version: CommandVersion, wanted: Wanted) -> Option<Client> {
    let (mut stdin, mut stdout, mut stderr, mut error, mut resize) = (None, None, None, None, None);
    let wants_resize = wanted.tty && version.resizes;
    loop {
        let have = |wanted: bool, stream: &Option<NewStream>| !wanted || stream.is_some();
        if have(wanted.stdin, &stdin)
            && have(wanted.stdout, &stdout)
            && have(wanted.stderr, &stderr)
            && have(wants_resize, &resize)
            && let Some(error) = error.take()
        {
            let NewStream { outgoing: error, .. } = error;
            return Some(Client {
                stdin: stdin.map(|stream| stream.incoming),
                stdout: stdout.map(|stream| stream.outgoing),
                stderr: stderr.map(|stream| stream.outgoing),
                error,
                resize: resize.map(|stream| stream.incoming),
                ending: version.ending,
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

/// Waits until the client has gone. It has no more streams to open.
async fn gone(session: &mut Session) {
    while let Some(stream) = session.accept().await {
        drop(stream.outgoing.abort().await);
    }
}

/// Serves a client that uses WebSocket channels.
pub(super) async fn over_channels<T>(
    daemon: &Shared,
    io: T,
    (coding, ending, closes): (Coding, Ending, bool),
    work: &Work,
    wanted: Wanted,
) where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let readable = [wanted.stdin.then_some(STDIN), Some(RESIZE)];
    let readable: Vec<u8> = readable.into_iter().flatten().collect();
    let mut channels = Channels::start(io, coding, closes, &readable);
    let client = Client {
        stdin: channels.incoming(STDIN),
        stdout: wanted.stdout.then(|| channels.outgoing(STDOUT)),
        stderr: wanted.stderr.then(|| channels.outgoing(STDERR)),
        error: channels.outgoing(ERROR),
        resize: channels.incoming(RESIZE),
        ending,
    };
    // An empty message tells the client that all is there (as the peers do it).
    let first = client.stdout.as_ref().or(client.stderr.as_ref()).unwrap_or(&client.error);
    if first.send(Bytes::new()).await.is_err() {
        return;
    }
    tokio::select! {
        () = serve(daemon, work, wanted, client) => {}
        () = channels.gone() => tracing::debug!("a client has gone before the end"),
    }
    // One that broke the protocol is told so.
    channels.close().await;
}
