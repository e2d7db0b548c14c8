//! Limits on concurrent downloads. Each pull has one slot, so it never waits for another pull. All pulls
//! share further slots; the configuration sets their number. A slow transfer releases its slot and continues.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Error;

/// The most concurrent transfers, including slow ones. Each has a thread, a connection, and memory for its
/// layer's notes and for its decompression.
const MAX_TRANSFERS: usize = 64;

/// The download slots of all pulls.
#[derive(Debug)]
pub(crate) struct Downloads {
    shared: Arc<Semaphore>,
    /// Limits the transfers that run, including slow ones.
    all: Arc<Semaphore>,
    /// The number of callers that wait for `all`.
    waiting: AtomicUsize,
    concurrency: usize,
}

/// The download slots of one pull.
#[derive(Debug)]
pub(crate) struct Slots {
    downloads: Arc<Downloads>,
    own: Arc<Semaphore>,
    /// Limits the transfers of this pull, including slow ones, so that another pull does not wait behind all
    /// layers of this one.
    concurrency: Arc<Semaphore>,
}

/// One download slot. Dropping it releases it.
#[derive(Debug)]
pub(crate) struct Slot {
    downloads: Arc<Downloads>,
    /// The pull's own permit, or a shared one. None if it was released.
    permit: Mutex<Option<OwnedSemaphorePermit>>,
    _concurrency: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Downloads {
    /// Creates `concurrency` slots that all pulls share. One pull has at most `concurrency` transfers.
    pub(crate) fn new(concurrency: usize) -> Self {
        let concurrency = concurrency.max(1);
        Self {
            shared: Arc::new(Semaphore::new(concurrency)),
            all: Arc::new(Semaphore::new(MAX_TRANSFERS.max(2 * concurrency))),
            waiting: AtomicUsize::new(0),
            concurrency,
        }
    }

    /// Returns the slots of a new pull.
    pub(crate) fn slots(self: &Arc<Self>) -> Slots {
        Slots {
            downloads: self.clone(),
            own: Arc::new(Semaphore::new(1)),
            concurrency: Arc::new(Semaphore::new(self.concurrency)),
        }
    }
}

impl Slots {
    /// Waits for a slot.
    pub(crate) async fn next(&self) -> Result<Slot, Error> {
        let closed = |error| Error::internal("acquire a download slot", error);
        let concurrency = self.concurrency.clone().acquire_owned().await.map_err(closed)?;
        let permit = tokio::select! {
            biased;
            own = self.own.clone().acquire_owned() => own,
            shared = self.downloads.shared.clone().acquire_owned() => shared,
        };
        let permit = permit.map_err(closed)?;
        let waiting = Waiting::new(&self.downloads.waiting);
        let all = self.downloads.all.clone().acquire_owned().await.map_err(closed)?;
        drop(waiting);
        let permit = Mutex::new(Some(permit));
        Ok(Slot { downloads: self.downloads.clone(), permit, _concurrency: concurrency, _all: all })
    }
}

impl Slot {
    /// Releases the slot to other transfers while this transfer continues.
    pub(crate) fn release(&self) {
        drop(self.permit.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Returns whether a transfer waits because `MAX_TRANSFERS` transfers run.
    pub(crate) fn blocks_others(&self) -> bool {
        self.downloads.waiting.load(Ordering::Relaxed) > 0
    }
}

/// Counts a waiting caller until it is dropped, also if the caller gives up.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    /// Returns the slots that are available without waiting.
    fn available(slots: &Slots) -> Vec<Slot> {
        let next = || tokio::task::unconstrained(slots.next()).now_or_never();
        std::iter::from_fn(next).map(Result::unwrap).collect()
    }

    #[tokio::test]
    async fn each_pull_has_one_slot_and_shares_the_others() {
        let downloads = Arc::new(Downloads::new(4));
        let (one, two, three) = (downloads.slots(), downloads.slots(), downloads.slots());
        let first = available(&one);
        assert_eq!(first.len(), 4);
        assert_eq!(available(&two).len(), 2, "its own and the last shared one");
        let second = available(&two);
        assert_eq!(available(&three).len(), 1);
        drop((first, second));
        assert_eq!(available(&three).len(), 4);
    }

    #[tokio::test]
    async fn a_slow_transfer_releases_its_slot_and_its_pull_gets_none_in_return() {
        let downloads = Arc::new(Downloads::new(2));
        let (slow, other, third) = (downloads.slots(), downloads.slots(), downloads.slots());
        let slow_ones = available(&slow);
        let _others = available(&other);
        assert_eq!(available(&third).len(), 1);
        slow_ones.iter().for_each(Slot::release);
        assert_eq!(available(&slow).len(), 0);
        assert_eq!(available(&third).len(), 2);
    }

    #[tokio::test]
    async fn a_transfer_blocks_others_only_if_none_can_begin() {
        let downloads = Arc::new(Downloads::new(1));
        let many: Vec<Slots> = (0..=MAX_TRANSFERS).map(|_| downloads.slots()).collect();
        let running: Vec<Slot> = many.iter().take(MAX_TRANSFERS).flat_map(available).collect();
        assert_eq!(running.len(), MAX_TRANSFERS);
        assert!(!running[0].blocks_others());
        let last = many.last().unwrap();
        {
            let mut next = Box::pin(last.next());
            assert!((&mut next).now_or_never().is_none());
            assert!(running[0].blocks_others());
        }
        assert!(!running[0].blocks_others(), "a caller that gave up does not wait");
    }
}
