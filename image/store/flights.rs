//! Work that several callers may want at the same time, and that is done once.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use super::index::LayerKey;
use crate::digest::Digest;
use crate::error::Error;
use crate::image::Image;

/// What makes two pulls the same: the name, and whose rights are used.
pub(crate) type PullKey = (String, Option<Digest>);
type PullResult = Result<Arc<Image>, Error>;
type Flight = BoxFuture<'static, PullResult>;

/// Pulls and layers under way. Entries are weak: what nobody waits for any more ends.
#[derive(Default)]
pub(super) struct Flights {
    layers: Mutex<HashMap<LayerKey, Weak<LayerFlight>>>,
    pulls: Mutex<HashMap<PullKey, WeakShared<Flight>>>,
}

impl fmt::Debug for Flights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Flights")
    }
}

impl Flights {
    /// The flight of a layer: whoever waits for it then finds the layer, or makes it in turn.
    pub(super) fn layer(&self, key: &LayerKey) -> Arc<LayerFlight> {
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        get_or_make(&mut layers, key, Weak::upgrade, || {
            let made = Arc::new(LayerFlight::default());
            let weak = Arc::downgrade(&made);
            (made, Some(weak))
        })
    }

    /// Joins the pull of this key, or starts it. It runs on its own, and ends when the last caller has gone.
    pub(super) async fn pull<F>(&self, key: PullKey, work: impl FnOnce() -> F) -> PullResult
    where
        F: Future<Output = PullResult> + Send + 'static,
    {
        let shared: Shared<Flight> = {
            let mut pulls = self.pulls.lock().unwrap_or_else(PoisonError::into_inner);
            // A pull that has ended is no news for a caller that comes after it.
            pulls.retain(|_, pull| pull.upgrade().is_some_and(|pull| pull.peek().is_none()));
            get_or_make(&mut pulls, &key, WeakShared::upgrade, || {
                let span = tracing::Span::current();
                let task =
                    AbortOnDropHandle::new(tokio::spawn(tracing::Instrument::instrument(work(), span)));
                let flight: Flight = Box::pin(async move {
                    task.await.unwrap_or_else(|error| Err(Error::internal("pull an image", error)))
                });
                let made = flight.shared();
                let weak = made.downgrade();
                (made, weak)
            })
        };
        shared.await
    }
}

/// A layer that is being made, put in or removed.
#[derive(Debug, Default)]
pub(super) struct LayerFlight {
    /// Held while the layer's folder gets its name or loses it.
    pub(super) placing: Arc<tokio::sync::Mutex<()>>,
    /// Those who make it, without those who are slow.
    makers: Mutex<usize>,
    changed: Notify,
}

impl LayerFlight {
    /// Waits until nobody makes the layer, or only who is slow: an image that claims to have a layer of another one, and
    /// sends it byte by byte, must not keep that one from having it.
    pub(super) async fn idle(&self) {
        loop {
            // Asked for before the look, so that no change comes in between.
            let changed = self.changed.notified();
            if *self.makers() == 0 {
                return;
            }
            changed.await;
        }
    }

    /// Begins to make it, if nobody else does.
    pub(super) fn begin(self: Arc<Self>) -> Option<Making> {
        let mut makers = self.makers();
        if *makers > 0 {
            return None;
        }
        *makers += 1;
        drop(makers);
        Some(Making { flight: self, counted: AtomicBool::new(true) })
    }

    fn makers(&self) -> MutexGuard<'_, usize> {
        self.makers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody makes a layer, until this is dropped.
#[derive(Debug)]
pub(crate) struct Making {
    flight: Arc<LayerFlight>,
    counted: AtomicBool,
}

impl Making {
    /// It takes long: who waits may make the layer, too. The first one who is done has made it.
    pub(crate) fn is_slow(&self) {
        if self.counted.swap(false, Ordering::Relaxed) {
            let mut makers = self.flight.makers();
            *makers = makers.saturating_sub(1);
            drop(makers);
            self.flight.changed.notify_waiters();
        }
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        self.is_slow();
    }
}

fn get_or_make<K: Clone + Eq + Hash, S, W>(
    known: &mut HashMap<K, W>,
    key: &K,
    upgrade: impl Fn(&W) -> Option<S>,
    make: impl FnOnce() -> (S, Option<W>),
) -> S {
    known.retain(|_, weak| upgrade(weak).is_some());
    if let Some(strong) = known.get(key).and_then(&upgrade) {
        return strong;
    }
    let (strong, weak) = make();
    known.extend(weak.map(|weak| (key.clone(), weak)));
    strong
}
