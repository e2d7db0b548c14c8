//! What is sent on one stream of a connection: handed over to the one task that writes the connection, through a short
//! queue. While the peer does not read, or does not open its window, the sender waits.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::spdy::table::Table;

/// How many messages wait for the writer. Each is at most what one read from a pipe gives.
pub(super) const QUEUE: usize = 8;

/// The peer is gone, or does not want any more of the stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the peer is gone")]
pub struct Gone;

/// What the writer of a connection is handed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// Data of a stream.
    Data {
        /// Its number.
        stream: u32,
        /// Whole.
        bytes: Bytes,
    },
    /// Nothing follows on a stream.
    Finish(u32),
    /// A stream is broken off.
    Abort(u32),
    /// A frame as it goes on the wire.
    Frame(Bytes),
    /// The last: the connection ends in order, or because the peer broke the protocol.
    Goodbye {
        /// The peer did nothing wrong.
        in_order: bool,
    },
}

/// Sends on one stream.
#[derive(Debug)]
pub struct Outgoing {
    stream: u32,
    items: mpsc::Sender<Item>,
    /// The windows of a SPDY session.
    table: Option<Arc<Table>>,
}

impl Outgoing {
    pub(super) fn new(stream: u32, items: mpsc::Sender<Item>, table: Option<Arc<Table>>) -> Self {
        Self { stream, items, table }
    }

    /// Sends bytes. An empty message is sent, too.
    ///
    /// # Errors
    /// Nobody receives them.
    pub async fn send(&self, mut bytes: Bytes) -> Result<(), Gone> {
        let Some(table) = &self.table else { return self.item(self.data(bytes)).await };
        while !bytes.is_empty() {
            let room = table.take(self.stream, bytes.len()).await?;
            let piece = bytes.split_to(room.min(bytes.len()));
            self.item(self.data(piece)).await?;
        }
        Ok(())
    }

    fn data(&self, bytes: Bytes) -> Item {
        Item::Data { stream: self.stream, bytes }
    }

    /// Says that nothing follows.
    ///
    /// # Errors
    /// Nobody hears it.
    pub async fn finish(&self) -> Result<(), Gone> {
        self.item(Item::Finish(self.stream)).await
    }

    /// Breaks the stream off, in both directions.
    ///
    /// # Errors
    /// Nobody hears it.
    pub async fn abort(&self) -> Result<(), Gone> {
        self.item(Item::Abort(self.stream)).await
    }

    async fn item(&self, item: Item) -> Result<(), Gone> {
        self.items.send(item).await.map_err(|_| Gone)
    }
}
