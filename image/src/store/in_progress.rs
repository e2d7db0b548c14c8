//! Work that several callers may request concurrently and that is done once.

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

use super::layer_key::LayerKey;
use crate::error::Error;
use crate::image::Image;
use crate::progress::PullKey;

type PullResult = Result<Arc<Image>, Error>;
type PullFuture = BoxFuture<'static, PullResult>;

/// The pulls and layers in progress. Entries are weak: work that has no callers left is cancelled.
#[derive(Default)]
pub(super) struct InProgress {
    layers: Mutex<HashMap<LayerKey, Weak<LayerState>>>,
    pulls: Mutex<HashMap<PullKey, WeakShared<PullFuture>>>,
}

impl fmt::Debug for InProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InProgress")
    }
}

impl InProgress {
    /// Returns the entry of a layer. A caller that has waited for it finds the layer, or creates it.
    pub(super) fn layer(&self, key: &LayerKey) -> Arc<LayerState> {
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        get_or_insert(&mut layers, key, Weak::upgrade, || {
            let entry = Arc::new(LayerState::default());
            let weak = Arc::downgrade(&entry);
            (entry, Some(weak))
        })
    }

    /// Joins the pull of this key, or starts it. It runs in its own task and is cancelled when its last
    /// caller leaves.
    pub(super) async fn pull<F>(&self, key: PullKey, work: impl FnOnce() -> F) -> PullResult
    where
        F: Future<Output = PullResult> + Send + 'static,
    {
        let shared: Shared<PullFuture> = {
            let mut pulls = self.pulls.lock().unwrap_or_else(PoisonError::into_inner);
            // A finished pull is not shared with later callers.
            pulls.retain(|_, pull| pull.upgrade().is_some_and(|pull| pull.peek().is_none()));
            get_or_insert(&mut pulls, &key, WeakShared::upgrade, || {
                let span = tracing::Span::current();
                let task =
                    AbortOnDropHandle::new(tokio::spawn(tracing::Instrument::instrument(work(), span)));
                let pull: PullFuture = Box::pin(async move {
                    task.await.unwrap_or_else(|error| Err(Error::internal("pull an image", error)))
                });
                let shared = pull.shared();
                let weak = shared.downgrade();
                (shared, weak)
            })
        };
        shared.await
    }
}

/// The state of a layer that is being created, placed in the store or removed.
#[derive(Debug, Default)]
pub(super) struct LayerState {
    /// Held while the layer's folder is renamed into the store or out of it.
    pub(super) placing: Arc<tokio::sync::Mutex<()>>,
    /// The number of callers that create the layer, without those that are slow.
    creators: Mutex<usize>,
    changed: Notify,
}

impl LayerState {
    /// Waits until no caller creates the layer, or only slow ones. An image that contains a layer of another
    /// image and sends it slowly must not delay the other image.
    pub(super) async fn idle(&self) {
        loop {
            // Registered before the check, so that no change is missed.
            let changed = self.changed.notified();
            if *self.creators() == 0 {
                return;
            }
            changed.await;
        }
    }

    /// Registers a caller that creates the layer, if there is none.
    pub(super) fn begin(self: Arc<Self>) -> Option<Creation> {
        let mut creators = self.creators();
        if *creators > 0 {
            return None;
        }
        *creators += 1;
        drop(creators);
        Some(Creation { state: self, counted: AtomicBool::new(true) })
    }

    fn creators(&self) -> MutexGuard<'_, usize> {
        self.creators.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The registration of a caller that creates a layer, until it is dropped.
#[derive(Debug)]
pub(crate) struct Creation {
    state: Arc<LayerState>,
    counted: AtomicBool,
}

impl Creation {
    /// Lets waiting callers create the layer as well, since this one is slow. The first to finish places it.
    pub(crate) fn set_slow(&self) {
        if self.counted.swap(false, Ordering::Relaxed) {
            let mut creators = self.state.creators();
            *creators = creators.saturating_sub(1);
            drop(creators);
            self.state.changed.notify_waiters();
        }
    }
}

impl Drop for Creation {
    fn drop(&mut self) {
        self.set_slow();
    }
}

fn get_or_insert<K: Clone + Eq + Hash, S, W>(
    entries: &mut HashMap<K, W>,
    key: &K,
    upgrade: impl Fn(&W) -> Option<S>,
    create: impl FnOnce() -> (S, Option<W>),
) -> S {
    entries.retain(|_, weak| upgrade(weak).is_some());
    if let Some(strong) = entries.get(key).and_then(&upgrade) {
        return strong;
    }
    let (strong, weak) = create();
    entries.extend(weak.map(|weak| (key.clone(), weak)));
    strong
}
