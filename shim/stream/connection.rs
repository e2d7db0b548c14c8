//! The two tasks of a connection, one that reads and one that writes, and how they end: by the client, or by us with all
//! that was sent before arriving.

use std::future::Future;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::outgoing::{Item, Outgoing};

/// How long the last frames may take to be taken by the client, and the client to hang up.
pub(super) const LINGER: Duration = Duration::from_secs(10);

/// See the module. Dropping it breaks the connection off.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) items: mpsc::Sender<Item>,
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
    gone: CancellationToken,
}

impl Connection {
    /// Begins. `reader` tells at its end whether the peer kept to the protocol; `writer` ends with the queue or a goodbye.
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
            // The writer may have gone: then there is nobody to tell.
            drop(goodbye.send(Item::Goodbye { in_order }).await);
        });
        let ended = gone.clone().drop_guard();
        let writer = tokio::spawn(async move {
            if let Err(error) = writer.await {
                tracing::debug!(%error, "a client is gone");
            }
            drop(ended);
        });
        Self { items, reader, writer, gone }
    }

    /// Sends on a stream without windows.
    pub(super) fn outgoing(&self, stream: u32) -> Outgoing {
        Outgoing::new(stream, self.items.clone(), None)
    }

    /// Waits until the client has gone.
    pub(super) async fn gone(&self) {
        self.gone.cancelled().await;
    }

    /// Ends in order. The client's end of the connection is waited for: closing a connection on which something arrives
    /// takes back what was sent (a reset instead of an end).
    pub(super) async fn close(mut self) {
        let ending = async {
            if self.items.send(Item::Goodbye { in_order: true }).await.is_ok() {
                // It cannot fail but by a panic, which has been told.
                drop((&mut self.writer).await);
            }
            drop((&mut self.reader).await);
        };
        if tokio::time::timeout(LINGER, ending).await.is_err() {
            tracing::debug!("a client does not hang up");
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
        self.writer.abort();
    }
}
