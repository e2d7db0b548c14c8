//! The sending side of a stream. Data goes through a short queue to the task that writes the connection.
//! While the peer does not read or its flow control window is full, the sender waits.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::futures::Notified;
use tokio::sync::mpsc;

/// Capacity of the writer's queue. A message is at most one read from a pipe.
pub(super) const QUEUE: usize = 8;

/// The peer has disconnected or has ended the stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the peer has disconnected")]
pub struct Gone;

/// An item in the queue of a connection's writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// Data of a stream.
    Data {
        /// The stream's number.
        stream: u32,
        /// The data to send.
        bytes: Bytes,
    },
    /// Ends the sending direction of a stream.
    Finish(u32),
    /// Resets a stream.
    Abort(u32),
    /// An encoded frame.
    Frame(Bytes),
    /// The last item: the connection ends, either normally or because the peer violated the protocol.
    Goodbye {
        /// The peer followed the protocol.
        in_order: bool,
    },
}

/// Flow control windows, which limit how much may be sent on each stream.
pub(super) trait SendWindows: fmt::Debug + Send + Sync {
    /// Reserves up to `length` bytes and returns how many, or `None` if a window is full.
    ///
    /// # Errors
    /// The stream has ended.
    fn try_reserve(&self, stream: u32, length: usize) -> Result<Option<usize>, Gone>;

    /// Waits for the next change of a window.
    fn changed(&self) -> Notified<'_>;
}

/// Waits for space in the windows of a stream. Reserves up to `length` bytes and returns how many.
///
/// # Errors
/// The stream has ended.
pub(super) async fn reserve(windows: &dyn SendWindows, stream: u32, length: usize) -> Result<usize, Gone> {
    loop {
        // Registered before the check, so that no change in between is missed.
        let changed = windows.changed();
        if let Some(taken) = windows.try_reserve(stream, length)? {
            return Ok(taken);
        }
        changed.await;
    }
}

/// Sends on one stream.
#[derive(Debug)]
pub struct Outgoing {
    stream: u32,
    items: mpsc::Sender<Item>,
    /// The flow control windows of a SPDY session.
    windows: Option<Arc<dyn SendWindows>>,
}

impl Outgoing {
    pub(super) fn new(stream: u32, items: mpsc::Sender<Item>, windows: Option<Arc<dyn SendWindows>>) -> Self {
        Self { stream, items, windows }
    }

    /// Sends bytes. On streams without windows, an empty message is sent as well.
    ///
    /// # Errors
    /// The peer is gone.
    pub async fn send(&self, mut bytes: Bytes) -> Result<(), Gone> {
        let Some(windows) = &self.windows else { return self.item(self.data(bytes)).await };
        while !bytes.is_empty() {
            let room = reserve(windows.as_ref(), self.stream, bytes.len()).await?;
            let piece = bytes.split_to(room.min(bytes.len()));
            self.item(self.data(piece)).await?;
        }
        Ok(())
    }

    fn data(&self, bytes: Bytes) -> Item {
        Item::Data { stream: self.stream, bytes }
    }

    /// Ends the sending direction.
    ///
    /// # Errors
    /// The peer is gone.
    pub async fn finish(&self) -> Result<(), Gone> {
        self.item(Item::Finish(self.stream)).await
    }

    /// Resets the stream, in both directions.
    ///
    /// # Errors
    /// The peer is gone.
    pub async fn abort(&self) -> Result<(), Gone> {
        self.item(Item::Abort(self.stream)).await
    }

    async fn item(&self, item: Item) -> Result<(), Gone> {
        self.items.send(item).await.map_err(|_| Gone)
    }
}
