//! The streams of a client that forwards ports. Over SPDY, each of its connections has a pair of streams with
//! the port in their headers. Over WebSocket channels, each requested port has a pair of channels.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::clients::STREAM_TIMEOUT;
use super::ports::{Forwarded, forward};
use super::spdy::{NewStream, SpdySession};
use super::websocket::{Channels, Coding};
use crate::store::Store;

/// Limit of a client's streams: two for each of 128 connections. A browser opens six per host.
const MAX_STREAMS: usize = 256;

/// Serves a client that uses SPDY.
pub(super) async fn over_spdy<T>(store: &Arc<Store>, io: T, pod: &str)
where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut session = SpdySession::start(io, MAX_STREAMS);
    let mut pairs = Pairs::default();
    // Dropping the set ends its tasks together with the session.
    let mut forwarding = JoinSet::new();
    loop {
        let oldest = pairs.oldest();
        tokio::select! {
            stream = session.accept() => match stream {
                Some(stream) => match pairs.add(stream) {
                    Ok(Some(forwarded)) => {
                        let (store, pod) = (store.clone(), pod.to_owned());
                        forwarding.spawn(async move { forward(&store, &pod, forwarded).await });
                    }
                    Ok(None) => {}
                    Err(rejected) => reject(*rejected).await,
                },
                None => break,
            },
            Some(_ended) = forwarding.join_next(), if !forwarding.is_empty() => {}
            () = tokio::time::sleep_until(oldest.unwrap_or_else(Instant::now)), if oldest.is_some() => {
                for stream in pairs.expired() {
                    let reason = "timed out waiting for the other stream".to_owned();
                    reject(RejectedStream { stream, reason }).await;
                }
            }
        }
    }
    // End the forwarding before waiting for the client.
    drop(forwarding);
    session.close().await;
}

/// A stream that is rejected, with the reason.
#[derive(Debug)]
struct RejectedStream {
    stream: NewStream,
    reason: String,
}

/// Sends the reason on an error stream; resets any other stream.
async fn reject(rejected: RejectedStream) {
    let RejectedStream { stream, reason } = rejected;
    tracing::debug!(reason, "rejected a stream of a port-forward client");
    // The client may be gone; the reason is then dropped.
    drop(match stream.headers.get("streamType") {
        Some("error") => match stream.outgoing.send(Bytes::from(reason)).await {
            Ok(()) => stream.outgoing.finish().await,
            gone => gone,
        },
        _ => stream.outgoing.abort().await,
    });
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StreamKind {
    Data,
    Error,
}

#[derive(Debug)]
struct Half {
    stream: NewStream,
    kind: StreamKind,
    port: u16,
    until: Instant,
}

/// Streams that wait for the other stream of their pair.
#[derive(Debug, Default)]
struct Pairs {
    halves: HashMap<String, Half>,
}

impl Pairs {
    /// Adds a stream. If it completes a pair, returns the pair.
    fn add(&mut self, stream: NewStream) -> Result<Option<Forwarded>, Box<RejectedStream>> {
        let (kind, port) = match kind_and_port(&stream) {
            Ok(described) => described,
            Err(reason) => return Err(Box::new(RejectedStream { stream, reason })),
        };
        let id = request_id(&stream, kind);
        let Some(other) = self.halves.remove(&id) else {
            self.halves.insert(id, Half { stream, kind, port, until: Instant::now() + STREAM_TIMEOUT });
            return Ok(None);
        };
        if other.kind == kind || other.port != port {
            let reason =
                format!("there is another stream of this kind, or for another port, with the id {id:?}");
            self.halves.insert(id, other);
            return Err(Box::new(RejectedStream { stream, reason }));
        }
        let (data, error) = match kind {
            StreamKind::Data => (stream, other.stream),
            StreamKind::Error => (other.stream, stream),
        };
        let NewStream { incoming: from_client, outgoing: to_client, .. } = data;
        Ok(Some(Forwarded { port, from_client, to_client, error: error.outgoing, half_closes: true }))
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

/// Reads the kind and port of a stream from its headers.
fn kind_and_port(stream: &NewStream) -> Result<(StreamKind, u16), String> {
    let kind = match stream.headers.get("streamType") {
        Some("data") => StreamKind::Data,
        Some("error") => StreamKind::Error,
        other => return Err(format!("invalid stream type {other:?}")),
    };
    let port = stream.headers.get("port").unwrap_or_default();
    match port.parse() {
        Ok(port @ 1..) => Ok((kind, port)),
        _ => Err(format!("unable to parse {port:?} as a port")),
    }
}

/// Returns the id that both streams of a pair share. Very old clients send none. They open the error stream
/// first; the data stream then has the client's next stream number, which is two higher (k8s.io/kubelet,
/// portforward).
fn request_id(stream: &NewStream, kind: StreamKind) -> String {
    match (stream.headers.get("requestID"), kind) {
        (Some(id), _) => id.to_owned(),
        (None, StreamKind::Error) => format!("stream {}", stream.id.get()),
        (None, StreamKind::Data) => format!("stream {}", stream.id.get().saturating_sub(2)),
    }
}

/// Serves a client that uses WebSocket channels.
pub(super) async fn over_channels<T>(store: &Arc<Store>, io: T, coding: Coding, pod: &str, ports: &[u16])
where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    // Each port has two channels. The request was rejected before if their numbers do not fit.
    let numbered = || ports.iter().zip((0..=u8::MAX).step_by(2));
    let readable: Vec<u8> = numbered().map(|(_, channel)| channel).collect();
    let mut channels = Channels::start(io, coding, false, &readable);
    let mut forwarding = JoinSet::new();
    for (port, channel) in numbered() {
        let Some(from_client) = channels.incoming(channel) else { continue };
        let (to_client, error) = (channels.outgoing(channel), channels.outgoing(channel.saturating_add(1)));
        let (store, pod, port) = (store.clone(), pod.to_owned(), *port);
        forwarding.spawn(async move {
            // Both channels begin with their port number.
            let first = Bytes::copy_from_slice(&port.to_le_bytes());
            if to_client.send(first.clone()).await.is_ok() && error.send(first).await.is_ok() {
                let forwarded = Forwarded { port, from_client, to_client, error, half_closes: false };
                forward(&store, &pod, forwarded).await;
            }
        });
    }
    let all = async { while forwarding.join_next().await.is_some() {} };
    tokio::select! {
        () = all => {}
        () = channels.gone() => {}
    }
    // End the forwarding before waiting for the client.
    drop(forwarding);
    channels.close().await;
}
