//! The subscribers of events, each with a bounded queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::{Stream, stream};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tonic::Status;

use crate::error::CriError;

/// Capacity of a subscriber's queue.
pub(super) const QUEUE: usize = 1024;

/// A list of subscribers to events of type `T`.
#[derive(Debug)]
pub(super) struct Subscribers<T> {
    list: Vec<Subscriber<T>>,
}

#[derive(Debug)]
struct Subscriber<T> {
    queue: mpsc::Sender<Arc<T>>,
    behind: Arc<AtomicBool>,
}

impl<T> Default for Subscribers<T> {
    fn default() -> Self {
        Self { list: Vec::new() }
    }
}

impl<T: Clone + Send + Sync + 'static> Subscribers<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Adds a subscriber that receives the events in `first` before all others. If it does not read, its
    /// stream ends with an error.
    pub(super) fn add(&mut self, first: &[Arc<T>]) -> impl Stream<Item = Result<T, Status>> + Send + use<T> {
        let (queue, events) = mpsc::channel(QUEUE + first.len());
        let behind = Arc::new(AtomicBool::new(false));
        let subscriber = Subscriber { queue, behind: behind.clone() };
        if first.iter().all(|event| subscriber.publish(event)) {
            self.list.push(subscriber);
        }
        stream::unfold((events, behind), |(mut events, behind)| async move {
            let event = match events.recv().await {
                Some(event) => Ok(Arc::unwrap_or_clone(event)),
                None if behind.swap(false, Ordering::Relaxed) => Err(too_far_behind()),
                None => return None,
            };
            Some((event, (events, behind)))
        })
    }

    /// Sends an event to all subscribers and drops those that are gone or too slow.
    pub(super) fn publish(&mut self, event: &Arc<T>) {
        self.list.retain(|subscriber| subscriber.publish(event));
    }
}

impl<T> Subscriber<T> {
    /// Queues an event. Returns false if the subscriber is gone or its queue is full.
    fn publish(&self, event: &Arc<T>) -> bool {
        match self.queue.try_send(event.clone()) {
            Ok(()) => true,
            Err(TrySendError::Closed(_)) => false,
            Err(TrySendError::Full(_)) => {
                self.behind.store(true, Ordering::Relaxed);
                false
            }
        }
    }
}

fn too_far_behind() -> Status {
    let reason = format!("the client left more than {QUEUE} events unread; subscribe again, then list");
    CriError::exhausted("events", reason).into()
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt};

    use super::*;

    #[tokio::test]
    async fn a_slow_subscriber_gets_an_error_and_others_are_not_affected() {
        let mut subscribers = Subscribers::default();
        let mut lazy = std::pin::pin!(subscribers.add(&[Arc::new(0), Arc::new(1)]));
        let mut busy = std::pin::pin!(subscribers.add(&[]));
        for event in 2..5000 {
            subscribers.publish(&Arc::new(event));
            assert_eq!(busy.next().await.unwrap().unwrap(), event);
        }
        let kept = i32::try_from(QUEUE).unwrap() + 2;
        for event in 0..kept {
            assert_eq!(lazy.next().await.unwrap().unwrap(), event, "the first events are kept");
        }
        let error = lazy.next().await.unwrap().unwrap_err();
        assert_eq!(error.code(), tonic::Code::ResourceExhausted);
        assert!(lazy.next().await.is_none());
        assert!(busy.next().now_or_never().is_none(), "no event, and the stream has not ended");
        assert!(!subscribers.is_empty());
    }

    #[tokio::test]
    async fn a_dropped_subscriber_is_removed() {
        let mut subscribers = Subscribers::default();
        drop(subscribers.add(&[]));
        subscribers.publish(&Arc::new(1));
        assert!(subscribers.is_empty());
    }
}
