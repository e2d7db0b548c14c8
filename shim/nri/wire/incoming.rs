//! Reads the socket of a plugin: answers go to the calls that wait for them, calls of the plugin to their receiver.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::unix::OwnedReadHalf;
use tokio::sync::{mpsc, oneshot};

use super::UNIMPLEMENTED;
use super::frame::{self, Channel};
use super::message::{Packet, TtrpcRequest, TtrpcResponse, TtrpcStatus, Unpacker};

/// The service of the daemon.
pub(super) const RUNTIME_SERVICE: &str = "nri.pkg.api.v1alpha1.Runtime";

/// A call of the plugin.
#[derive(Debug)]
pub struct IncomingCall {
    /// The name of the function.
    pub method: String,
    /// The argument, encoded.
    pub payload: Vec<u8>,
    stream: u32,
    output: mpsc::Sender<Vec<u8>>,
}

impl IncomingCall {
    /// Sends the answer.
    pub async fn answer(self, result: Result<Vec<u8>, TtrpcStatus>) {
        let response = match result {
            Ok(payload) => TtrpcResponse { status: None, payload },
            Err(status) => TtrpcResponse { status: Some(status), payload: Vec::new() },
        };
        send_response(&self.output, self.stream, response).await;
    }
}

async fn send_response(output: &mpsc::Sender<Vec<u8>>, stream: u32, response: TtrpcResponse) {
    // Only a closed connection refuses the answer.
    if let Ok(bytes) = Packet::Response(stream, response).encode() {
        drop(output.send(frame::frames(Channel::Runtime, &bytes)).await);
    }
}

pub(super) type Waiting = Arc<Mutex<HashMap<u32, oneshot::Sender<TtrpcResponse>>>>;

pub(super) fn lock(waiting: &Waiting) -> MutexGuard<'_, HashMap<u32, oneshot::Sender<TtrpcResponse>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The reader of a socket.
pub(super) struct Reader {
    input: OwnedReadHalf,
    output: mpsc::Sender<Vec<u8>>,
    waiting: Waiting,
    incoming: mpsc::Sender<IncomingCall>,
    from_plugin: Unpacker,
    to_runtime: Unpacker,
}

impl Reader {
    /// Creates a reader that answers the plugin through `output`.
    pub(super) fn new(
        input: OwnedReadHalf,
        output: mpsc::Sender<Vec<u8>>,
        waiting: Waiting,
        incoming: mpsc::Sender<IncomingCall>,
    ) -> Self {
        let (from_plugin, to_runtime) = (Unpacker::default(), Unpacker::default());
        Self { input, output, waiting, incoming, from_plugin, to_runtime }
    }

    /// Reads until the connection ends, and returns the reason.
    pub(super) async fn run(&mut self) -> String {
        loop {
            if let Err(error) = self.read_frame().await {
                return match error.kind() {
                    std::io::ErrorKind::UnexpectedEof => "the plugin has closed it".to_owned(),
                    _ => error.to_string(),
                };
            }
        }
    }

    async fn read_frame(&mut self) -> std::io::Result<()> {
        let Some((channel, data)) = frame::read(&mut self.input).await? else { return Ok(()) };
        let unpacker = match channel {
            Channel::Plugin => &mut self.from_plugin,
            Channel::Runtime => &mut self.to_runtime,
        };
        unpacker.push(&data);
        loop {
            let unpacker = match channel {
                Channel::Plugin => &mut self.from_plugin,
                Channel::Runtime => &mut self.to_runtime,
            };
            let Some(packet) = unpacker.next_packet()? else { return Ok(()) };
            self.handle(channel, packet).await?;
        }
    }

    async fn handle(&self, channel: Channel, packet: Packet) -> std::io::Result<()> {
        match (channel, packet) {
            (Channel::Plugin, Packet::Response(stream, response)) => {
                // The caller may have given up.
                let sender = lock(&self.waiting).remove(&stream);
                drop(sender.map(|sender| sender.send(response)));
                Ok(())
            }
            (Channel::Runtime, Packet::Request(stream, request)) => self.accept(stream, request).await,
            (Channel::Plugin, Packet::Request(..)) | (Channel::Runtime, Packet::Response(..)) => {
                Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "a message in the wrong direction"))
            }
        }
    }

    async fn accept(&self, stream: u32, request: TtrpcRequest) -> std::io::Result<()> {
        if request.service != RUNTIME_SERVICE {
            let message = format!("service {} is not known", request.service);
            let status = Some(TtrpcStatus { code: UNIMPLEMENTED, message });
            send_response(&self.output, stream, TtrpcResponse { status, payload: Vec::new() }).await;
            return Ok(());
        }
        let output = self.output.clone();
        let call = IncomingCall { method: request.method, payload: request.payload, stream, output };
        self.incoming.try_send(call).map_err(|_full| std::io::Error::other("too many calls wait"))
    }
}
