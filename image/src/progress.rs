//! The progress of pulls, layer by layer.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::descriptor::Descriptor;
use crate::digest::Digest;

/// Identifies a pull: the name, and the fingerprint of the credentials.
pub(crate) type PullKey = (String, Option<Digest>);

/// The stage of a layer in a pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It waits for other layers.
    Waiting,
    /// It is being received and unpacked.
    Receiving,
    /// It is in the store.
    Done,
}

/// One layer of an image that is being pulled, or one file of an artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerProgress {
    /// The digest of the received content.
    pub digest: String,
    /// The size of the content, in bytes.
    pub size: u64,
    /// The bytes that were received.
    pub received: u64,
    /// The current step of the layer: download, unpack and so on.
    pub stage: Stage,
}

/// The layers of one pull. Empty until the manifest is received.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    layers: Mutex<Vec<Arc<Tracked>>>,
}

/// One layer, whose download updates it.
#[derive(Debug)]
pub(crate) struct Tracked {
    digest: String,
    size: u64,
    pub(crate) received: AtomicU64,
    stage: AtomicU8,
}

/// The running pulls, and what all pulls have transferred.
#[derive(Debug, Default)]
pub(crate) struct Pulls(Mutex<HashMap<PullKey, Weak<Progress>>>, Totals);

#[derive(Debug, Default)]
struct Totals {
    bytes: AtomicU64,
    fetched: AtomicU64,
    reused: AtomicU64,
}

/// The amounts that pulls have transferred since the store was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transferred {
    /// The bytes of layers and files as they were received, also those of failed transfers.
    pub bytes: u64,
    /// The layers and files that were fetched.
    pub fetched: u64,
    /// The layers that were in the store, or that another pull has fetched.
    pub reused: u64,
}

impl Pulls {
    /// Registers a new pull.
    pub(crate) fn start(&self, key: &PullKey) -> Arc<Progress> {
        let progress = Arc::new(Progress::default());
        let mut pulls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pulls.retain(|_, pull| pull.strong_count() > 0);
        pulls.insert(key.clone(), Arc::downgrade(&progress));
        progress
    }

    /// Returns whether no pull runs.
    pub(crate) fn is_idle(&self) -> bool {
        let pulls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pulls.values().all(|pull| pull.strong_count() == 0)
    }

    /// Returns the references of the running pulls, with the progress of their layers.
    pub(crate) fn running(&self) -> Vec<(String, Vec<LayerProgress>)> {
        let pulls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let running = pulls.iter().filter_map(|((name, _), pull)| Some((name, pull.upgrade()?)));
        running.map(|(name, progress)| (name.clone(), progress.show())).collect()
    }

    /// Counts a layer whose transfer has ended.
    pub(crate) fn count(&self, layer: &Tracked, succeeded: bool) {
        let add = |total: &AtomicU64, count| total.fetch_add(count, Ordering::Relaxed);
        let was_fetched = layer.show().stage == Stage::Receiving;
        if was_fetched {
            add(&self.1.bytes, layer.received.load(Ordering::Relaxed));
        }
        match (succeeded, was_fetched) {
            (true, true) => _ = add(&self.1.fetched, 1),
            (true, false) => _ = add(&self.1.reused, 1),
            (false, _) => {}
        }
    }

    /// Returns what was counted so far.
    pub(crate) fn transferred(&self) -> Transferred {
        let Totals { bytes, fetched, reused } = &self.1;
        let read = |total: &AtomicU64| total.load(Ordering::Relaxed);
        Transferred { bytes: read(bytes), fetched: read(fetched), reused: read(reused) }
    }

    /// Returns the progress of the layers of a pull. It is empty if the pull does not run.
    pub(crate) fn layers(&self, key: &PullKey) -> Vec<LayerProgress> {
        let pull = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).and_then(Weak::upgrade);
        pull.map(|progress| progress.show()).unwrap_or_default()
    }
}

impl Progress {
    fn show(&self) -> Vec<LayerProgress> {
        let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        layers.iter().map(|layer| layer.show()).collect()
    }

    /// Sets the layers, when the manifest is received.
    pub(crate) fn track(&self, layers: &[Descriptor]) -> Vec<Arc<Tracked>> {
        let tracked = layers.iter().map(|layer| {
            Arc::new(Tracked {
                digest: layer.digest.to_string(),
                size: layer.size,
                received: AtomicU64::new(0),
                stage: AtomicU8::new(0),
            })
        });
        let tracked: Vec<_> = tracked.collect();
        self.layers.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&tracked);
        tracked
    }
}

impl Tracked {
    pub(crate) fn set(&self, stage: Stage) {
        let number = match stage {
            Stage::Waiting => 0,
            Stage::Receiving => 1,
            Stage::Done => 2,
        };
        self.stage.store(number, Ordering::Relaxed);
    }

    fn show(&self) -> LayerProgress {
        let stage = match self.stage.load(Ordering::Relaxed) {
            0 => Stage::Waiting,
            1 => Stage::Receiving,
            _ => Stage::Done,
        };
        LayerProgress {
            digest: self.digest.clone(),
            size: self.size,
            received: self.received.load(Ordering::Relaxed),
            stage,
        }
    }
}
