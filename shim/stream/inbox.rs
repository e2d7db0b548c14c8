//! The receiving side of a stream: a bounded buffer between the task that reads the connection and the task
//! that uses the stream. While the buffer is full, the reader waits, and so does the peer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

/// Capacity of the buffer: the initial window of a SPDY stream.
pub const CAPACITY: usize = 64 << 10;

/// The stream was reset, or its connection is lost.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream was reset")]
pub struct Broken;

/// Receives the number of consumed bytes.
pub trait Consumed: Send + Sync + std::fmt::Debug {
    /// Called after this many bytes were taken out of the buffer.
    fn consumed(&self, bytes: usize);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StreamEnd {
    Finished,
    Broken,
}

#[derive(Debug, Default)]
struct InboxState {
    buffer: BytesMut,
    end: Option<StreamEnd>,
    abandoned: bool,
}

#[derive(Debug, Default)]
struct Buffer {
    state: Mutex<InboxState>,
    filled: Notify,
    space: Notify,
}

impl Buffer {
    fn lock(&self) -> MutexGuard<'_, InboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The connection reader's end of the buffer.
#[derive(Clone, Debug)]
pub struct Inbox {
    shared: Arc<Buffer>,
}

/// The consumer's end of the buffer.
#[derive(Debug)]
pub struct Incoming {
    shared: Arc<Buffer>,
    consumed: Option<Arc<dyn Consumed>>,
}

/// Creates a buffer and returns both ends.
#[must_use]
pub fn inbox(consumed: Option<Arc<dyn Consumed>>) -> (Inbox, Incoming) {
    let shared = Arc::new(Buffer::default());
    (Inbox { shared: shared.clone() }, Incoming { shared, consumed })
}

impl Inbox {
    /// Adds bytes, waiting for space. Returns how many were dropped because the stream has ended or its
    /// consumer is gone.
    pub async fn push(&self, mut bytes: &[u8]) -> usize {
        while !bytes.is_empty() {
            {
                let mut state = self.shared.lock();
                if state.abandoned || state.end.is_some() {
                    return bytes.len();
                }
                let space = CAPACITY.saturating_sub(state.buffer.len());
                let (now, later) = bytes.split_at(space.min(bytes.len()));
                state.buffer.extend_from_slice(now);
                bytes = later;
            }
            self.shared.filled.notify_one();
            if !bytes.is_empty() {
                self.shared.space.notified().await;
            }
        }
        0
    }

    /// Marks the end of the peer's data.
    pub fn finish(&self) {
        self.end(StreamEnd::Finished);
    }

    /// Marks the stream as reset and drops its buffered data.
    pub fn break_off(&self) {
        self.end(StreamEnd::Broken);
    }

    fn end(&self, end: StreamEnd) {
        let mut state = self.shared.lock();
        if end == StreamEnd::Broken {
            state.buffer.clear();
            state.end = Some(end);
        } else {
            state.end.get_or_insert(end);
        }
        drop(state);
        self.shared.filled.notify_one();
        self.shared.space.notify_one();
    }
}

impl Incoming {
    /// Waits for data and returns it; none at the end.
    ///
    /// # Errors
    /// The stream was reset.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Broken> {
        loop {
            {
                let mut state = self.shared.lock();
                if !state.buffer.is_empty() {
                    let bytes = state.buffer.split().freeze();
                    drop(state);
                    self.shared.space.notify_one();
                    if let Some(consumed) = &self.consumed {
                        consumed.consumed(bytes.len());
                    }
                    return Ok(Some(bytes));
                }
                match state.end {
                    Some(StreamEnd::Finished) => return Ok(None),
                    Some(StreamEnd::Broken) => return Err(Broken),
                    None => {}
                }
            }
            self.shared.filled.notified().await;
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.abandoned = true;
        let left = std::mem::take(&mut state.buffer).len();
        drop(state);
        self.shared.space.notify_one();
        if let (Some(consumed), true) = (&self.consumed, left > 0) {
            consumed.consumed(left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_writer_waits_for_space_and_nothing_is_lost() {
        let (inbox, mut incoming) = inbox(None);
        let sent: Vec<u8> = (0..3 * CAPACITY + 17).map(|i| i.to_le_bytes()[0]).collect();
        let all = sent.clone();
        let writer = tokio::spawn(async move {
            assert_eq!(inbox.push(&all).await, 0);
            inbox.finish();
        });
        let mut received = Vec::new();
        while let Some(bytes) = incoming.next().await.unwrap() {
            assert!(bytes.len() <= CAPACITY);
            received.extend_from_slice(&bytes);
        }
        writer.await.unwrap();
        assert_eq!(received, sent);
        assert_eq!(incoming.next().await, Ok(None));
    }

    #[tokio::test]
    async fn a_dropped_consumer_unblocks_the_writer() {
        let (inbox, incoming) = inbox(None);
        let writer = tokio::spawn(async move { inbox.push(&vec![0; 2 * CAPACITY]).await });
        while incoming.shared.lock().buffer.len() < CAPACITY {
            tokio::task::yield_now().await;
        }
        drop(incoming);
        assert_eq!(writer.await.unwrap(), CAPACITY);
    }

    #[tokio::test]
    async fn a_reset_stream_is_not_finished() {
        let (inbox, mut incoming) = inbox(None);
        inbox.push(b"lost").await;
        inbox.break_off();
        inbox.finish();
        assert_eq!(incoming.next().await, Err(Broken));
        assert_eq!(inbox.push(b"late").await, 4);
    }
}
