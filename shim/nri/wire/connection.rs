//! The connection of a plugin, for the daemon's calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use prost::Message;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{mpsc, oneshot, watch};

use super::MAX_WAITING;
use super::frame::{self, Channel};
use super::incoming::{IncomingCall, Reader, Waiting, lock};
use super::message::{Packet, TooLarge, TtrpcRequest, TtrpcStatus};

/// The service of plugins.
const PLUGIN_SERVICE: &str = "nri.pkg.api.v1alpha1.Plugin";

/// The failure of a call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PluginError {
    /// The plugin answered with an error.
    #[error("{message}")]
    Rejected {
        /// The code of the error, as in gRPC.
        code: i32,
        /// The text of the plugin.
        message: String,
    },
    /// The plugin did not answer in time.
    #[error("no answer after {0:?}")]
    Timeout(Duration),
    /// The connection is closed.
    #[error("the connection is closed: {0}")]
    Closed(String),
    /// The answer is not a valid message.
    #[error("invalid answer: {0}")]
    Protocol(String),
    /// The request is too large.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
}

/// The connection of one plugin.
#[derive(Debug)]
pub struct PluginConnection {
    output: mpsc::Sender<Vec<u8>>,
    waiting: Waiting,
    next_stream: AtomicU32,
    /// The reason of the end, when the connection has ended.
    closed: watch::Sender<Option<String>>,
}

impl PluginConnection {
    /// Starts to read a socket. Returns the connection and the calls of the plugin.
    #[must_use]
    pub fn start(socket: UnixStream) -> (Arc<Self>, mpsc::Receiver<IncomingCall>) {
        let (read, write) = socket.into_split();
        let (output, to_write) = mpsc::channel(MAX_WAITING);
        let (incoming, calls) = mpsc::channel(MAX_WAITING);
        let connection = Arc::new(Self {
            output: output.clone(),
            waiting: Waiting::default(),
            // A client has odd numbers (PROTOCOL.md, "Message Frame").
            next_stream: AtomicU32::new(1),
            closed: watch::Sender::new(None),
        });
        let mut reader = Reader::new(read, output, connection.waiting.clone(), incoming);
        let closing = connection.closed.clone();
        let waiting = connection.waiting.clone();
        tokio::spawn(async move {
            let mut closed = closing.subscribe();
            let why = tokio::select! {
                why = reader.run() => why,
                why = write_all(write, to_write) => why,
                _closed = closed.wait_for(Option::is_some) => return,
            };
            closing.send_if_modified(|reason| set_once(reason, why));
            lock(&waiting).clear();
        });
        (connection, calls)
    }

    /// Calls a function of the plugin.
    ///
    /// # Errors
    /// The plugin rejects the call, does not answer in time, or its connection ends.
    pub async fn call<Q: Message, A: Message + Default>(
        &self,
        method: &str,
        request: &Q,
        limit: Duration,
    ) -> Result<A, PluginError> {
        let stream = self.next_stream.fetch_add(2, Ordering::Relaxed);
        let request = TtrpcRequest {
            service: PLUGIN_SERVICE.to_owned(),
            method: method.to_owned(),
            payload: request.encode_to_vec(),
            timeout_nanoseconds: i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX),
        };
        let bytes = frame::frames(Channel::Plugin, &Packet::Request(stream, request).encode()?);
        let (sender, answer) = oneshot::channel();
        lock(&self.waiting).insert(stream, sender);
        let exchange = async {
            // If the connection has ended, the sender of the answer is dropped or will be.
            if self.output.send(bytes).await.is_err() {
                return None;
            }
            let mut closed = self.closed.subscribe();
            tokio::select! {
                biased;
                answer = answer => answer.ok(),
                _closed = closed.wait_for(Option::is_some) => None,
            }
        };
        let answered = tokio::time::timeout(limit, exchange).await;
        lock(&self.waiting).remove(&stream);
        let response = answered
            .map_err(|_elapsed| PluginError::Timeout(limit))?
            .ok_or_else(|| PluginError::Closed(self.close_reason()))?;
        match response.status.filter(|status| status.code != 0) {
            Some(TtrpcStatus { code, message }) => Err(PluginError::Rejected { code, message }),
            None => A::decode(response.payload.as_slice())
                .map_err(|error| PluginError::Protocol(error.to_string())),
        }
    }

    /// Closes the connection. Later reasons are ignored.
    pub fn close(&self, why: &str) {
        self.closed.send_if_modified(|reason| set_once(reason, why.to_owned()));
    }

    /// Waits until the connection has ended, and returns the reason.
    pub async fn ended(&self) -> String {
        let mut closed = self.closed.subscribe();
        // `self` owns the sender, so this cannot fail.
        drop(closed.wait_for(Option::is_some).await);
        self.close_reason()
    }

    /// Whether the connection has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.borrow().is_some()
    }

    fn close_reason(&self) -> String {
        self.closed.borrow().clone().unwrap_or_else(|| "end of file".to_owned())
    }
}

impl Drop for PluginConnection {
    fn drop(&mut self) {
        self.close("it is no longer used");
    }
}

fn set_once(reason: &mut Option<String>, why: String) -> bool {
    let first = reason.is_none();
    reason.get_or_insert(why);
    first
}

async fn write_all(mut socket: OwnedWriteHalf, mut frames: mpsc::Receiver<Vec<u8>>) -> String {
    while let Some(bytes) = frames.recv().await {
        if let Err(error) = socket.write_all(&bytes).await {
            return error.to_string();
        }
    }
    "it is no longer used".to_owned()
}

#[cfg(test)]
mod tests {
    use berth_proto::nri::{ConfigureRequest, ConfigureResponse, RegisterPluginRequest};

    use super::super::incoming::RUNTIME_SERVICE;
    use super::super::message::{TtrpcResponse, Unpacker};
    use super::super::{UNIMPLEMENTED, UNKNOWN};
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    /// A plugin that answers calls, for the tests of the daemon's side.
    struct Peer {
        socket: UnixStream,
        unpacker: Unpacker,
    }

    impl Peer {
        async fn next(&mut self) -> Packet {
            loop {
                if let Some(packet) = self.unpacker.next_packet().unwrap() {
                    return packet;
                }
                let (_, data) = frame::read(&mut self.socket).await.unwrap().unwrap();
                self.unpacker.push(&data);
            }
        }

        async fn send(&mut self, channel: Channel, packet: &Packet) {
            let bytes = frame::frames(channel, &packet.encode().unwrap());
            self.socket.write_all(&bytes).await.unwrap();
        }
    }

    fn connected() -> (Arc<PluginConnection>, mpsc::Receiver<IncomingCall>, Peer) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (connection, calls) = PluginConnection::start(ours);
        (connection, calls, Peer { socket: theirs, unpacker: Unpacker::default() })
    }

    #[tokio::test]
    async fn answers_find_their_calls_in_any_order() {
        let (connection, _calls, mut peer) = connected();
        let call = |config: &str| {
            let (connection, config) = (connection.clone(), config.to_owned());
            tokio::spawn(async move {
                let request = ConfigureRequest { config, ..ConfigureRequest::default() };
                connection.call::<_, ConfigureResponse>("Configure", &request, LIMIT).await
            })
        };
        let calls = [call("1"), call("2")];
        let mut requests = Vec::new();
        for _ in 0..2 {
            let Packet::Request(stream, request) = peer.next().await else { panic!("not a request") };
            assert_eq!((request.service.as_str(), request.method.as_str()), (PLUGIN_SERVICE, "Configure"));
            let config = ConfigureRequest::decode(request.payload.as_slice()).unwrap().config;
            requests.push((stream, config.parse::<i32>().unwrap()));
        }
        for (stream, events) in requests.into_iter().rev() {
            let payload = ConfigureResponse { events, failure_policy: None }.encode_to_vec();
            let response = TtrpcResponse { status: None, payload };
            peer.send(Channel::Plugin, &Packet::Response(stream, response)).await;
        }
        for (call, events) in calls.into_iter().zip(1..) {
            assert_eq!(call.await.unwrap().unwrap().events, events);
        }
    }

    #[tokio::test]
    async fn a_call_of_the_plugin_is_answered() {
        let (_connection, mut calls, mut peer) = connected();
        let payload =
            RegisterPluginRequest { plugin_name: "p".to_owned(), ..Default::default() }.encode_to_vec();
        for (service, known) in [("other.Service", false), (RUNTIME_SERVICE, true)] {
            let request = TtrpcRequest {
                service: service.to_owned(),
                method: "RegisterPlugin".to_owned(),
                payload: payload.clone(),
                timeout_nanoseconds: 0,
            };
            peer.send(Channel::Runtime, &Packet::Request(1, request)).await;
            if known {
                let call = calls.recv().await.unwrap();
                assert_eq!((call.method.as_str(), &call.payload), ("RegisterPlugin", &payload));
                call.answer(Ok(Vec::new())).await;
            }
            let Packet::Response(1, response) = peer.next().await else { panic!("not the response") };
            assert_eq!(response.status.map(|status| status.code), (!known).then_some(UNIMPLEMENTED));
        }
    }

    #[tokio::test]
    async fn calls_end_with_their_connection() {
        let (connection, _calls, mut peer) = connected();
        let request = ConfigureRequest::default();
        let short = Duration::from_millis(50);
        let answer = connection.call::<_, ConfigureResponse>("Configure", &request, short).await;
        assert_eq!(answer, Err(PluginError::Timeout(short)));
        drop(peer.next().await);
        let waiting = {
            let connection = connection.clone();
            tokio::spawn(async move {
                connection
                    .call::<_, ConfigureResponse>("Configure", &ConfigureRequest::default(), LIMIT)
                    .await
            })
        };
        drop(peer.next().await);
        drop(peer);
        let closed = PluginError::Closed("the plugin has closed it".to_owned());
        assert_eq!(waiting.await.unwrap(), Err(closed.clone()));
        assert_eq!(connection.ended().await, "the plugin has closed it");
        let answer = connection.call::<_, ConfigureResponse>("Configure", &request, LIMIT).await;
        assert_eq!(answer, Err(closed));
    }

    #[tokio::test]
    async fn an_error_of_the_plugin_is_returned() {
        let (connection, _calls, mut peer) = connected();
        let call = tokio::spawn(async move {
            connection.call::<_, ConfigureResponse>("Configure", &ConfigureRequest::default(), LIMIT).await
        });
        let Packet::Request(stream, _) = peer.next().await else { panic!("not a request") };
        let status = Some(TtrpcStatus { code: UNKNOWN, message: "refused".to_owned() });
        let response = TtrpcResponse { status, payload: Vec::new() };
        peer.send(Channel::Plugin, &Packet::Response(stream, response)).await;
        let expected = PluginError::Rejected { code: UNKNOWN, message: "refused".to_owned() };
        assert_eq!(call.await.unwrap(), Err(expected));
    }
}
