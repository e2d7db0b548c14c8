//! A tunnel: the bytes of one connection as messages of a WebSocket (`SPDY/3.1+portforward.k8s.io`,
//! Kubernetes 1.30).

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, DuplexStream, WriteHalf};
use tokio::sync::mpsc;

use super::super::connection::LINGER;
use super::super::outgoing::{Item, QUEUE};
use super::coding::Coding;
use super::reader::{ReadError, Receive, read};
use super::writer::write;

/// Size of the buffers, per direction.
const BUFFER: usize = 64 << 10;

/// Starts a tunnel and returns its inner end. The tunnel ends when that is dropped.
pub fn start<T>(io: T) -> DuplexStream
where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let (inside, outside) = tokio::io::duplex(BUFFER);
    tokio::spawn(run(io, outside));
    inside
}

async fn run<T: AsyncRead + AsyncWrite + Send + 'static>(io: T, outside: DuplexStream) {
    let (from_client, to_client) = tokio::io::split(io);
    let (mut from_inside, to_inside) = tokio::io::split(outside);
    let (items, queued) = mpsc::channel(QUEUE);
    let pongs = items.clone();
    let reading = async move {
        let mut io = BufReader::with_capacity(BUFFER, from_client);
        let mut inner = InnerWriter(to_inside);
        if let Err(error) = read(&mut io, &mut inner, &pongs).await {
            tracing::debug!(%error, "failed to read from a tunnel");
        }
        // The inner end may be closed already.
        drop(inner.0.shutdown().await);
    };
    let sending = async move {
        loop {
            let mut piece = bytes::BytesMut::with_capacity(BUFFER);
            match from_inside.read_buf(&mut piece).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => break,
            }
            if items.send(Item::Data { stream: 0, bytes: piece.freeze() }).await.is_err() {
                return;
            }
        }
        // The writer may have ended already.
        drop(items.send(Item::Goodbye { in_order: true }).await);
    };
    let writing = async move {
        if let Err(error) = write(to_client, Coding::Tunnel, queued).await {
            tracing::debug!(%error, "failed to write to a client");
        }
    };
    let rest = async { tokio::join!(sending, writing) };
    tokio::pin!(reading, rest);
    // When one direction has ended, the other has a bounded time to end.
    let both = tokio::select! {
        () = &mut reading => tokio::time::timeout(LINGER, rest).await.map(drop),
        _ended = &mut rest => tokio::time::timeout(LINGER, reading).await,
    };
    if both.is_err() {
        tracing::debug!("a tunnel's client did not close its connection in time");
    }
}

/// Writes the content of messages to the inner end.
struct InnerWriter(WriteHalf<DuplexStream>);

impl Receive for InnerWriter {
    async fn piece(&mut self, piece: &[u8]) -> Result<(), ReadError> {
        self.0.write_all(piece).await.map_err(ReadError::Io)
    }

    async fn end(&mut self) -> Result<(), ReadError> {
        Ok(())
    }
}
