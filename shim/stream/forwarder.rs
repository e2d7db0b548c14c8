//! The streams of a client that forwards ports: over SPDY a pair of streams for each of its connections, with the port in
//! their headers; over WebSocket channels a pair for each port that the request named.

use std::collections::HashMap;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::clients::CREATION;
use super::ports::{Forwarded, forward};
use super::spdy::{NewStream, Session};
use super::websocket::{Channels, Coding};
use crate::daemon::Shared;

/// Streams of a client: two for each of 128 connections at once. A browser opens six to a host.
const MAX_STREAMS: usize = 256;

/// Serves a client that uses SPDY.
pub(super) async fn over_spdy<T>(daemon: &Shared, io: T, pod: &str)
where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut session = Session::start(io, MAX_STREAMS);
    let mut pairs = Pairs::default();
    // What is forwarded ends with the session: dropping the set ends its tasks.
    let mut forwarding = JoinSet::new();
    loop {
        let oldest = pairs.oldest();
        tokio::select! {
            stream = session.accept() => match stream {
                Some(stream) => match pairs.add(stream) {
                    Ok(Some(forwarded)) => {
                        let (daemon, pod) = (daemon.clone(), pod.to_owned());
                        forwarding.spawn(async move { forward(&daemon, &pod, forwarded).await });
                    }
                    Ok(None) => {}
                    Err(refused) => refuse(*refused).await,
                },
                None => break,
            },
            Some(_ended) = forwarding.join_next(), if !forwarding.is_empty() => {}
            () = tokio::time::sleep_until(oldest.unwrap_or_else(Instant::now)), if oldest.is_some() => {
                for half in pairs.expired() {
                    refuse(Refused { stream: half, why: "timed out waiting for the other stream".to_owned() }).await;
                }
            }
        }
    }
    // What is forwarded has ended before its client is waited for.
    drop(forwarding);
    session.close().await;
}

/// A stream that is not forwarded.
#[derive(Debug)]
struct Refused {
    stream: NewStream,
    why: String,
}

/// Tells why, where the stream is for that; another is broken off.
async fn refuse(refused: Refused) {
    let Refused { stream, why } = refused;
    tracing::debug!(why, "a forwarded connection is refused");
    // The client may be gone: then there is nobody to tell.
    drop(match stream.headers.get("streamType") {
        Some("error") => match stream.outgoing.send(Bytes::from(why)).await {
            Ok(()) => stream.outgoing.finish().await,
            gone => gone,
        },
        _ => stream.outgoing.abort().await,
    });
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Data,
    Error,
}

#[derive(Debug)]
struct Half {
    stream: NewStream,
    kind: Kind,
    port: u16,
    until: Instant,
}

/// Streams that wait for the other of their pair.
#[derive(Debug, Default)]
struct Pairs {
    halves: HashMap<String, Half>,
}

impl Pairs {
    /// Adds a stream. The second of a pair makes it whole.
    fn add(&mut self, stream: NewStream) -> Result<Option<Forwarded>, Box<Refused>> {
        let (kind, port) = match described(&stream) {
            Ok(found) => found,
            Err(why) => return Err(Box::new(Refused { stream, why })),
        };
        let id = request_id(&stream, kind);
        let Some(other) = self.halves.remove(&id) else {
            self.halves.insert(id, Half { stream, kind, port, until: Instant::now() + CREATION });
            return Ok(None);
        };
        if other.kind == kind || other.port != port {
            let why =
                format!("there is another stream of this kind, or for another port, with the id {id:?}");
            self.halves.insert(id, other);
            return Err(Box::new(Refused { stream, why }));
        }
        let (data, error) = match kind {
            Kind::Data => (stream, other.stream),
            Kind::Error => (other.stream, stream),
        };
        let NewStream { incoming: from_client, outgoing: to_client, .. } = data;
        Ok(Some(Forwarded { port, from_client, to_client, error: error.outgoing, ends: true }))
    }

    fn oldest(&self) -> Option<Instant> {
        self.halves.values().map(|half| half.until).min()
    }

    fn expired(&mut self) -> Vec<NewStream> {
        let now = Instant::now();
        let expired = self.halves.extract_if(|_, half| half.until <= now);
        expired.map(|(_, half)| half.stream).collect()
    }
}

/// What a stream is for.
fn described(stream: &NewStream) -> Result<(Kind, u16), String> {
    let kind = match stream.headers.get("streamType") {
        Some("data") => Kind::Data,
        Some("error") => Kind::Error,
        other => return Err(format!("invalid stream type {other:?}")),
    };
    let port = stream.headers.get("port").unwrap_or_default();
    match port.parse() {
        Ok(port @ 1..) => Ok((kind, port)),
        _ => Err(format!("unable to parse {port:?} as a port")),
    }
}

/// What both streams of a pair have in common. Very old clients say nothing: they open the error stream, then the data
/// stream, which has the next number of a client, two more (k8s.io/kubelet, portforward).
fn request_id(stream: &NewStream, kind: Kind) -> String {
    match (stream.headers.get("requestID"), kind) {
        (Some(id), _) => id.to_owned(),
        (None, Kind::Error) => format!("stream {}", stream.id.get()),
        (None, Kind::Data) => format!("stream {}", stream.id.get().saturating_sub(2)),
    }
}

/// Serves a client that uses WebSocket channels.
pub(super) async fn over_channels<T>(daemon: &Shared, io: T, coding: Coding, pod: &str, ports: &[u16])
where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    // Two channels for each port; the request was refused if their numbers do not fit.
    let numbered = || ports.iter().zip((0..=u8::MAX).step_by(2));
    let readable: Vec<u8> = numbered().map(|(_, channel)| channel).collect();
    let mut channels = Channels::start(io, coding, false, &readable);
    let mut forwarding = JoinSet::new();
    for (port, channel) in numbered() {
        let Some(from_client) = channels.incoming(channel) else { continue };
        let (to_client, error) = (channels.outgoing(channel), channels.outgoing(channel.saturating_add(1)));
        let (daemon, pod, port) = (daemon.clone(), pod.to_owned(), *port);
        forwarding.spawn(async move {
            // Both channels begin with their port.
            let first = Bytes::copy_from_slice(&port.to_le_bytes());
            if to_client.send(first.clone()).await.is_ok() && error.send(first).await.is_ok() {
                let forwarded = Forwarded { port, from_client, to_client, error, ends: false };
                forward(&daemon, &pod, forwarded).await;
            }
        });
    }
    let all = async { while forwarding.join_next().await.is_some() {} };
    tokio::select! {
        () = all => {}
        () = channels.gone() => {}
    }
    // What is forwarded has ended before its client is waited for.
    drop(forwarding);
    channels.close().await;
}
