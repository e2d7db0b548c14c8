//! The two tasks of a connection, a reader and a writer, and how they end: when the client disconnects, or
//! when we close after all sent data was delivered.

use std::future::Future;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::outgoing::{Item, Outgoing};

/// How long the client may take to accept the last frames and close the connection.
pub(super) const LINGER: Duration = Duration::from_secs(10);

/// The reader and writer task of a connection. Dropping it aborts both.
#[derive(Debug)]
pub(super) struct ConnectionTasks {
    pub(super) items: mpsc::Sender<Item>,
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
    gone: CancellationToken,
}

impl ConnectionTasks {
    /// Starts both tasks. `reader` returns whether the peer followed the protocol; `writer` ends with the
    /// queue or a goodbye.
    pub(super) fn start(
        items: mpsc::Sender<Item>,
        reader: impl Future<Output = bool> + Send + 'static,
        writer: impl Future<Output = std::io::Result<()>> + Send + 'static,
    ) -> Self {
        let gone = CancellationToken::new();
        let goodbye = items.clone();
        let ended = gone.clone().drop_guard();
        let reader = tokio::spawn(async move {
            let in_order = reader.await;
            drop(ended);
            // The writer may have ended; the goodbye is then dropped.
            drop(goodbye.send(Item::Goodbye { in_order }).await);
        });
        let ended = gone.clone().drop_guard();
        let writer = tokio::spawn(async move {
            if let Err(error) = writer.await {
                tracing::debug!(%error, "failed to write to a client");
            }
            drop(ended);
        });
        Self { items, reader, writer, gone }
    }

    /// Returns a sender for a stream without flow control windows.
    pub(super) fn outgoing(&self, stream: u32) -> Outgoing {
        Outgoing::new(stream, self.items.clone(), None)
    }

    /// Waits until the client has disconnected.
    pub(super) async fn gone(&self) {
        self.gone.cancelled().await;
    }

    /// Closes the connection gracefully and waits for the client to close its end: closing a connection while
    /// data arrives would reset it, and sent data would be lost.
    pub(super) async fn close(mut self) {
        let closing = async {
            if self.items.send(Item::Goodbye { in_order: true }).await.is_ok() {
                // It can only fail by a panic, which was already reported.
                drop((&mut self.writer).await);
            }
            drop((&mut self.reader).await);
        };
        if tokio::time::timeout(LINGER, closing).await.is_err() {
            tracing::debug!("a client did not close its connection in time");
        }
    }
}

impl Drop for ConnectionTasks {
    fn drop(&mut self) {
        self.reader.abort();
        self.writer.abort();
    }
}
