//! Whose turn it is to download and unpack. Each pull has one turn of its own, so that none waits for another pull; beyond
//! that all of them share as many as the configuration says. A transfer that is slow lends its turn to others and goes on.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Error;

/// The most transfers at once, slow ones included. Each has a thread, a connection, and memory for what is noted of its layer
/// and for its decompression.
const MAX_TRANSFERS: usize = 64;

/// The turns of all pulls.
#[derive(Debug)]
pub(crate) struct Downloads {
    shared: Arc<Semaphore>,
    /// How many may be under way, and how many wait for that.
    all: Arc<Semaphore>,
    waiting: AtomicUsize,
    at_once: usize,
}

/// The turns of one pull.
#[derive(Debug)]
pub(crate) struct Turns {
    downloads: Arc<Downloads>,
    own: Arc<Semaphore>,
    /// How many it may have, slow ones included: another pull does not wait behind all layers of this one.
    at_once: Arc<Semaphore>,
}

/// One turn; it ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    downloads: Arc<Downloads>,
    /// The pull's own, or one that is shared.
    lent: Mutex<Option<OwnedSemaphorePermit>>,
    _at_once: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Downloads {
    /// `at_once` turns are shared by all pulls; one pull has as many at the same time.
    pub(crate) fn new(at_once: usize) -> Self {
        let at_once = at_once.max(1);
        Self {
            shared: Arc::new(Semaphore::new(at_once)),
            all: Arc::new(Semaphore::new(MAX_TRANSFERS.max(2 * at_once))),
            waiting: AtomicUsize::new(0),
            at_once,
        }
    }

    /// The turns of a new pull.
    pub(crate) fn turns(self: &Arc<Self>) -> Turns {
        Turns {
            downloads: self.clone(),
            own: Arc::new(Semaphore::new(1)),
            at_once: Arc::new(Semaphore::new(self.at_once)),
        }
    }
}

impl Turns {
    /// Waits for a turn.
    pub(crate) async fn next(&self) -> Result<Turn, Error> {
        let closed = |error| Error::internal("wait for a transfer's turn", error);
        let at_once = self.at_once.clone().acquire_owned().await.map_err(closed)?;
        let permit = tokio::select! {
            biased;
            own = self.own.clone().acquire_owned() => own,
            shared = self.downloads.shared.clone().acquire_owned() => shared,
        };
        let permit = permit.map_err(closed)?;
        let waiting = Waiting::new(&self.downloads.waiting);
        let all = self.downloads.all.clone().acquire_owned().await.map_err(closed)?;
        drop(waiting);
        let lent = Mutex::new(Some(permit));
        Ok(Turn { downloads: self.downloads.clone(), lent, _at_once: at_once, _all: all })
    }
}

impl Turn {
    /// Lets somebody else have the turn, while this transfer goes on.
    pub(crate) fn lend(&self) {
        drop(self.lent.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Whether others cannot even begin, since all transfers that there may be are under way.
    pub(crate) fn is_in_the_way(&self) -> bool {
        self.downloads.waiting.load(Ordering::Relaxed) > 0
    }
}

/// Counts somebody who waits, also one who gives up.
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

    /// The turns that can be had without waiting.
    fn available(turns: &Turns) -> Vec<Turn> {
        let next = || tokio::task::unconstrained(turns.next()).now_or_never();
        std::iter::from_fn(next).map(Result::unwrap).collect()
    }

    #[tokio::test]
    async fn each_pull_has_one_of_its_own_and_shares_the_others() {
        let downloads = Arc::new(Downloads::new(4));
        let (one, two, three) = (downloads.turns(), downloads.turns(), downloads.turns());
        let first = available(&one);
        assert_eq!(first.len(), 4);
        assert_eq!(available(&two).len(), 2, "its own and the one that is left");
        let second = available(&two);
        assert_eq!(available(&three).len(), 1);
        drop((first, second));
        assert_eq!(available(&three).len(), 4);
    }

    #[tokio::test]
    async fn a_slow_transfer_lends_its_turn_and_its_pull_gets_no_more_for_it() {
        let downloads = Arc::new(Downloads::new(2));
        let (slow, other, third) = (downloads.turns(), downloads.turns(), downloads.turns());
        let slow_ones = available(&slow);
        let _others = available(&other);
        assert_eq!(available(&third).len(), 1);
        slow_ones.iter().for_each(Turn::lend);
        assert_eq!(available(&slow).len(), 0);
        assert_eq!(available(&third).len(), 2);
    }

    #[tokio::test]
    async fn only_where_nobody_can_begin_is_a_transfer_in_the_way() {
        let downloads = Arc::new(Downloads::new(1));
        let many: Vec<Turns> = (0..=MAX_TRANSFERS).map(|_| downloads.turns()).collect();
        let running: Vec<Turn> = many.iter().take(MAX_TRANSFERS).flat_map(available).collect();
        assert_eq!(running.len(), MAX_TRANSFERS);
        assert!(!running[0].is_in_the_way());
        let last = many.last().unwrap();
        {
            let mut next = Box::pin(last.next());
            assert!((&mut next).now_or_never().is_none());
            assert!(running[0].is_in_the_way());
        }
        assert!(!running[0].is_in_the_way(), "who gives up does not wait");
    }
}
