//! An NRI plugin inside the test, over the daemon's socket. It records its calls and reacts as the test specifies.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use berth::nri::wire::UNIMPLEMENTED;
use berth::nri::wire::frame::{self, Channel};
use berth::nri::wire::message::{Packet, TtrpcRequest, TtrpcResponse, TtrpcStatus, Unpacker};
use berth_proto::nri::*;
use prost::Message;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{Mutex as AsyncMutex, oneshot};

use crate::support::PATIENCE;

/// The reaction to a call.
pub enum Reaction {
    Answer(Vec<u8>),
    Error(&'static str),
    /// The function does not exist.
    Unknown,
    /// No answer.
    Silence,
    /// The plugin ends.
    End,
    /// The answer comes when the test sends something.
    Wait(oneshot::Receiver<()>, Vec<u8>),
}

impl Reaction {
    pub fn answer(message: &impl Message) -> Self {
        Self::Answer(message.encode_to_vec())
    }
}

/// The calls of the plugin that wait for their answers, by stream.
type Answers = Arc<Mutex<Vec<(u32, oneshot::Sender<TtrpcResponse>)>>>;

type React = Box<dyn FnMut(&str, &[u8]) -> Option<Reaction> + Send>;

/// A call that the plugin received.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub method: String,
    pub payload: Vec<u8>,
}

impl Seen {
    /// Returns the pod and the container of an event.
    pub fn event(&self) -> (PodSandbox, Option<Container>) {
        let request = StartContainerRequest::decode(self.payload.as_slice()).unwrap();
        (request.pod.unwrap_or_default(), request.container)
    }
}

/// A connected plugin. Drop ends its connection.
pub struct TestPlugin {
    seen: Arc<Mutex<Vec<Seen>>>,
    writer: Arc<AsyncMutex<OwnedWriteHalf>>,
    answers: Answers,
    reader: tokio::task::JoinHandle<()>,
}

impl Drop for TestPlugin {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl TestPlugin {
    /// Connects a plugin that subscribes to all events, and waits until it has all pods and containers.
    pub async fn connect(socket: &Path, index: &str, name: &str) -> Self {
        Self::reacting(socket, index, name, |_, _| None).await
    }

    /// Connects a plugin with reactions. A call without one gets an empty answer.
    pub async fn reacting(
        socket: &Path,
        index: &str,
        name: &str,
        react: impl FnMut(&str, &[u8]) -> Option<Reaction> + Send + 'static,
    ) -> Self {
        let plugin = Self::start(socket, index, name, react).await;
        plugin.until("Synchronize").await;
        // The daemon has handled the answer when it answers the next call on the same connection.
        plugin.update(UpdateContainersRequest::default()).await;
        plugin
    }

    /// Connects a plugin, and registers it.
    pub async fn start(
        socket: &Path,
        index: &str,
        name: &str,
        react: impl FnMut(&str, &[u8]) -> Option<Reaction> + Send + 'static,
    ) -> Self {
        let until = Instant::now() + PATIENCE;
        let connection = loop {
            match UnixStream::connect(socket).await {
                Ok(connection) => break connection,
                Err(error) => assert!(Instant::now() < until, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        let (mut input, output) = connection.into_split();
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let answers = Answers::default();
        let writer = Arc::new(AsyncMutex::new(output));
        let (log, waiting, replies) = (seen.clone(), answers.clone(), writer.clone());
        let mut react: React = Box::new(react);
        let reader = tokio::spawn(async move {
            let mut unpackers = [Unpacker::default(), Unpacker::default()];
            while let Ok(Some((channel, data))) = frame::read(&mut input).await {
                let unpacker = &mut unpackers[usize::from(channel == Channel::Runtime)];
                unpacker.push(&data);
                while let Some(packet) = unpacker.next_packet().unwrap() {
                    match packet {
                        Packet::Request(stream, request) => {
                            log.lock().unwrap().push(Seen {
                                method: request.method.clone(),
                                payload: request.payload.clone(),
                            });
                            let reaction = react(&request.method, &request.payload);
                            if !reply(&replies, stream, reaction).await {
                                return;
                            }
                        }
                        Packet::Response(stream, response) => {
                            let mut waiting = waiting.lock().unwrap();
                            let place = waiting.iter().position(|(other, _)| *other == stream).unwrap();
                            drop(waiting.remove(place).1.send(response));
                        }
                    }
                }
            }
        });
        let plugin = Self { seen, writer, answers, reader };
        let request = RegisterPluginRequest {
            plugin_name: name.to_owned(),
            plugin_idx: index.to_owned(),
            nri_version: "test".to_owned(),
        };
        assert_eq!(plugin.call("RegisterPlugin", &request).await.status, None);
        plugin
    }

    /// Calls the daemon.
    pub async fn call(&self, method: &str, request: &impl Message) -> TtrpcResponse {
        let (sender, answer) = oneshot::channel();
        let stream = {
            static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);
            NEXT.fetch_add(2, std::sync::atomic::Ordering::Relaxed)
        };
        self.answers.lock().unwrap().push((stream, sender));
        let request = TtrpcRequest {
            service: "nri.pkg.api.v1alpha1.Runtime".to_owned(),
            method: method.to_owned(),
            payload: request.encode_to_vec(),
            timeout_nanoseconds: 0,
        };
        send(&self.writer, Channel::Runtime, &Packet::Request(stream, request)).await;
        tokio::time::timeout(PATIENCE, answer).await.unwrap().unwrap()
    }

    /// Changes containers. Returns the ids of those that failed.
    pub async fn update(&self, request: UpdateContainersRequest) -> Vec<String> {
        let response = self.call("UpdateContainers", &request).await;
        let failed = UpdateContainersResponse::decode(response.payload.as_slice()).unwrap().failed;
        failed.into_iter().map(|update| update.container_id).collect()
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Returns the names of the calls.
    pub fn calls(&self) -> Vec<String> {
        self.seen().into_iter().map(|seen| seen.method).collect()
    }

    pub fn forget(&self) {
        self.seen.lock().unwrap().clear();
    }

    /// Waits for a call.
    pub async fn until(&self, method: &str) -> Seen {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(seen) = self.seen().into_iter().find(|seen| seen.method == method) {
                return seen;
            }
            assert!(Instant::now() < until, "no {method}: {:?}", self.calls());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until the daemon has closed the connection.
    pub async fn closed(&mut self) {
        tokio::time::timeout(PATIENCE, &mut self.reader).await.unwrap().unwrap();
    }
}

async fn reply(writer: &Arc<AsyncMutex<OwnedWriteHalf>>, stream: u32, reaction: Option<Reaction>) -> bool {
    let error = |code, message: &str| {
        let status = TtrpcStatus { code, message: message.to_owned() };
        TtrpcResponse { status: Some(status), payload: Vec::new() }
    };
    let response = match reaction.unwrap_or(Reaction::Answer(Vec::new())) {
        Reaction::Answer(payload) => TtrpcResponse { status: None, payload },
        Reaction::Error(text) => error(2, text),
        Reaction::Unknown => error(UNIMPLEMENTED, "no such function"),
        Reaction::Silence => return true,
        Reaction::End => {
            drop(writer.lock().await.shutdown().await);
            return false;
        }
        Reaction::Wait(until, payload) => {
            let writer = writer.clone();
            tokio::spawn(async move {
                drop(until.await);
                let response = TtrpcResponse { status: None, payload };
                send(&writer, Channel::Plugin, &Packet::Response(stream, response)).await;
            });
            return true;
        }
    };
    send(writer, Channel::Plugin, &Packet::Response(stream, response)).await;
    true
}

async fn send(writer: &AsyncMutex<OwnedWriteHalf>, channel: Channel, packet: &Packet) {
    let bytes = frame::frames(channel, &packet.encode().unwrap());
    // The daemon may have closed the connection.
    drop(writer.lock().await.write_all(&bytes).await);
}
