//! Those who are told what happens, each with a queue of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::{Stream, stream};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tonic::Status;

use crate::error::CriError;

/// How many events wait for a subscriber.
pub(super) const QUEUE: usize = 1024;

/// The subscribers, of whatever is told.
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

    /// A subscriber, who is told `first` before all that follows. One that does not read is told so in the end.
    pub(super) fn add(&mut self, first: &[Arc<T>]) -> impl Stream<Item = Result<T, Status>> + Send + use<T> {
        let (queue, events) = mpsc::channel(QUEUE + first.len());
        let behind = Arc::new(AtomicBool::new(false));
        let subscriber = Subscriber { queue, behind: behind.clone() };
        if first.iter().all(|event| subscriber.tell(event)) {
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

    /// Tells everyone who still listens.
    pub(super) fn tell(&mut self, event: &Arc<T>) {
        self.list.retain(|subscriber| subscriber.tell(event));
    }
}

impl<T> Subscriber<T> {
    /// Whether it still listens.
    fn tell(&self, event: &Arc<T>) -> bool {
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
    let why = format!("more than {QUEUE} of them were not read: subscribe anew, then list what there is");
    CriError::exhausted("container events", why).into()
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt};

    use super::*;

    #[tokio::test]
    async fn a_subscriber_that_does_not_read_is_told_so_and_no_other_suffers() {
        let mut subscribers = Subscribers::default();
        let mut lazy = std::pin::pin!(subscribers.add(&[Arc::new(0), Arc::new(1)]));
        let mut busy = std::pin::pin!(subscribers.add(&[]));
        for event in 2..5000 {
            subscribers.tell(&Arc::new(event));
            assert_eq!(busy.next().await.unwrap().unwrap(), event);
        }
        let kept = i32::try_from(QUEUE).unwrap() + 2;
        for event in 0..kept {
            assert_eq!(lazy.next().await.unwrap().unwrap(), event, "what came first was kept");
        }
        let error = lazy.next().await.unwrap().unwrap_err();
        assert_eq!(error.code(), tonic::Code::ResourceExhausted);
        assert!(lazy.next().await.is_none());
        assert!(busy.next().now_or_never().is_none(), "nothing is told, and nothing has ended");
        assert!(!subscribers.is_empty());
    }

    #[tokio::test]
    async fn who_goes_away_is_forgotten() {
        let mut subscribers = Subscribers::default();
        drop(subscribers.add(&[]));
        subscribers.tell(&Arc::new(1));
        assert!(subscribers.is_empty());
    }
}
