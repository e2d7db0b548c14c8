//! Bytes that have arrived for one consumer: a bounded buffer between the one task that reads a connection and the task
//! that uses a stream of it. While the buffer is full, the reader waits, and with it the peer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

/// How much waits for a consumer at most: what a SPDY peer may send before anyone has looked at it.
pub const CAPACITY: usize = 64 << 10;

/// The stream was broken off, or its connection is lost.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream was broken off")]
pub struct Broken;

/// Is told how much a consumer has taken.
pub trait Consumed: Send + Sync + std::fmt::Debug {
    /// That many bytes are out of the buffer.
    fn consumed(&self, bytes: usize);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Finished,
    Broken,
}

#[derive(Debug, Default)]
struct State {
    buffer: BytesMut,
    end: Option<End>,
    abandoned: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    filled: Notify,
    room: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The reader's end.
#[derive(Clone, Debug)]
pub struct Inbox {
    shared: Arc<Shared>,
}

/// The consumer's end.
#[derive(Debug)]
pub struct Incoming {
    shared: Arc<Shared>,
    consumed: Option<Arc<dyn Consumed>>,
}

/// Both ends of a buffer.
#[must_use]
pub fn inbox(consumed: Option<Arc<dyn Consumed>>) -> (Inbox, Incoming) {
    let shared = Arc::new(Shared::default());
    (Inbox { shared: shared.clone() }, Incoming { shared, consumed })
}

impl Inbox {
    /// Adds bytes, when there is room for them. Tells how many nobody will look at, since the stream is over or its
    /// consumer has gone.
    pub async fn push(&self, mut bytes: &[u8]) -> usize {
        while !bytes.is_empty() {
            {
                let mut state = self.shared.lock();
                if state.abandoned || state.end.is_some() {
                    return bytes.len();
                }
                let room = CAPACITY.saturating_sub(state.buffer.len());
                let (now, later) = bytes.split_at(room.min(bytes.len()));
                state.buffer.extend_from_slice(now);
                bytes = later;
            }
            self.shared.filled.notify_one();
            if !bytes.is_empty() {
                self.shared.room.notified().await;
            }
        }
        0
    }

    /// The peer has said that nothing follows.
    pub fn finish(&self) {
        self.end(End::Finished);
    }

    /// The stream is lost. What was received before goes with it.
    pub fn break_off(&self) {
        self.end(End::Broken);
    }

    fn end(&self, end: End) {
        let mut state = self.shared.lock();
        if end == End::Broken {
            state.buffer.clear();
            state.end = Some(end);
        } else {
            state.end.get_or_insert(end);
        }
        drop(state);
        self.shared.filled.notify_one();
        self.shared.room.notify_one();
    }
}

impl Incoming {
    /// What has arrived, once something has; nothing after the end.
    ///
    /// # Errors
    /// The stream was broken off.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Broken> {
        loop {
            {
                let mut state = self.shared.lock();
                if !state.buffer.is_empty() {
                    let bytes = state.buffer.split().freeze();
                    drop(state);
                    self.shared.room.notify_one();
                    if let Some(consumed) = &self.consumed {
                        consumed.consumed(bytes.len());
                    }
                    return Ok(Some(bytes));
                }
                match state.end {
                    Some(End::Finished) => return Ok(None),
                    Some(End::Broken) => return Err(Broken),
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
        self.shared.room.notify_one();
        if let (Some(consumed), true) = (&self.consumed, left > 0) {
            consumed.consumed(left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_writer_waits_for_room_and_nothing_is_lost() {
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
    async fn a_consumer_that_goes_frees_the_writer() {
        let (inbox, incoming) = inbox(None);
        let writer = tokio::spawn(async move { inbox.push(&vec![0; 2 * CAPACITY]).await });
        while incoming.shared.lock().buffer.len() < CAPACITY {
            tokio::task::yield_now().await;
        }
        drop(incoming);
        assert_eq!(writer.await.unwrap(), CAPACITY);
    }

    #[tokio::test]
    async fn a_broken_stream_is_not_a_finished_one() {
        let (inbox, mut incoming) = inbox(None);
        inbox.push(b"lost").await;
        inbox.break_off();
        inbox.finish();
        assert_eq!(incoming.next().await, Err(Broken));
        assert_eq!(inbox.push(b"late").await, 4);
    }
}
