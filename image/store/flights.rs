//! Work that several callers may want at the same time, and that is done once.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};
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
    layers: Mutex<HashMap<LayerKey, Weak<tokio::sync::Mutex<()>>>>,
    pulls: Mutex<HashMap<PullKey, WeakShared<Flight>>>,
}

impl fmt::Debug for Flights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Flights")
    }
}

impl Flights {
    /// The lock under which a layer is made or removed: whoever waits for it then finds the layer, or makes it in turn.
    pub(super) fn layer(&self, key: &LayerKey) -> Arc<tokio::sync::Mutex<()>> {
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        get_or_make(&mut layers, key, Weak::upgrade, || {
            let made = Arc::new(tokio::sync::Mutex::new(()));
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
